import numpy as np
import pytest

from hotplate.train.commands.data import main
from hotplate.train.errors import InputError


@pytest.fixture
def prepared(tmp_path, tokenizer, words):
    """A folder that the command prepared."""
    source = tmp_path / "text"
    source.mkdir()
    for number in range(30):
        (source / f"{number}.txt").write_text(words(200, number))
    out = tmp_path / "out"
    assert main(["prepare", "--source", str(source), "--out", str(out), "--tokenizer", str(tokenizer.path)]) == 0
    return out


def test_prepare_check_info(prepared, capsys):
    assert main(["check", str(prepared)]) == 0
    out = capsys.readouterr().out
    assert (
        "validation" in out
        and "every hash, index and id is right" in out
        and "bytes per token" in out
        and "2,048 ids" in out
    )
    assert main(["info", str(prepared)]) == 0
    assert "nats per token on test" in capsys.readouterr().out


def test_check_finds_damage(prepared):
    path = prepared / "train-00000.tokens"
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)
    assert main(["info", str(prepared)]) == 0
    with pytest.raises(InputError, match=r"train-00000\.tokens: damaged body"):
        main(["check", str(prepared)])


def test_import(tmp_path, tokenizer, words, capsys):
    ids = np.concatenate([[*tokenizer.encode(words(40, seed)), 2047] for seed in range(30)])
    ids.astype("<u2").tofile(tmp_path / "train.bin")
    arguments = [
        "--source",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--tokenizer",
        str(tokenizer.path),
    ]
    assert main(["import", "--format", "nanogpt", "--separator", "2047", *arguments]) == 0
    assert main(["check", str(tmp_path / "out")]) == 0
    np.save(tmp_path / "a.npy", tokenizer.encode("one").astype(np.uint16))
    np.save(tmp_path / "list.npy", np.array([["a.npy", "1"]]))
    np.save(tmp_path / "a.npy", np.array([77], np.uint16))
    arguments[3] = str(tmp_path / "languini")
    assert (
        main(
            [
                "import",
                "--format",
                "languini",
                "--file-lists",
                "train",
                str(tmp_path / "list.npy"),
                *arguments,
            ]
        )
        == 0
    )
    assert main(["check", str(tmp_path / "languini")]) == 0


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["prepare"], ["prepare", "--vocab", "many"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
