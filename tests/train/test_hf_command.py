"""Hugging Face folders through the commands: imported, grown, trained, exported."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from hotplate.train import checkpoint
from hotplate.train.commands import guarded
from hotplate.train.commands.evaluate import main as evaluate
from hotplate.train.commands.grow import main as grow
from hotplate.train.commands.hf import main as hf
from hotplate.train.commands.train import main as train


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_import_grow_train_export(llama: Path, prepared: Path, tmp_path: Path, capsys) -> None:
    start, grown, run, out = (tmp_path / name for name in ("start", "grown", "run", "out"))
    assert hf(["import", str(llama), "-o", str(start)]) == 0
    assert "parameters from" in capsys.readouterr().out
    flags = [
        "--data.source",
        str(prepared),
        "--data.window=32",
        "--batch=8",
        "--threads=1",
        "--device=cpu",
        "--precision=fp32",
    ]
    assert evaluate([str(start), "--data", str(prepared), "--limit=500"]) == 0
    assert grow([str(start), "--width=2", "--ffn=2", "--heads=2", "-o", str(grown)]) == 0
    assert train([str(grown), *flags, "--budget=3steps", f"--run.folder={run}", "--evaluation.sample-tokens=0"]) == 0
    assert hf(["export", str(run), "-o", str(out), "--family=llama"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.hidden_size == 64 and model.config.num_key_value_heads == 4
    trained = checkpoint.find(run)
    assert torch.equal(model.model.embed_tokens.weight, trained.model["embedding.weight"])


def test_a_start_for_other_tokens_keeps_the_body(llama: Path, tmp_path: Path, capsys) -> None:
    whole, sliced, drawn = (tmp_path / name for name in ("whole", "sliced", "drawn"))
    assert hf(["import", str(llama), "-o", str(whole)]) == 0
    assert hf(["import", str(llama), "-o", str(sliced), "--vocab=502", "--rope-theta=1e6"]) == 0
    assert hf(["import", str(llama), "-o", str(drawn), "--vocab=3000", "--rows=random", "--seed=4"]) == 0
    full, cut, new = (checkpoint.find(folder) for folder in (whole, sliced, drawn))
    assert torch.equal(cut.model["embedding.weight"], full.model["embedding.weight"][:502])
    assert cut.trainer["model"]["vocab"] == 502 and cut.trainer["model"]["mixer"]["rope_theta"] == 1e6
    assert new.model["embedding.weight"].shape == (3000, 32) and cut.trainer["model"]["tied"]
    assert new.model["embedding.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in full.model.keys() - {"embedding.weight"}:
        assert torch.equal(full.model[name], cut.model[name]) and torch.equal(full.model[name], new.model[name])
    capsys.readouterr()
    assert guarded(hf, ["import", str(llama), "-o", str(tmp_path / "x"), "--vocab=4000"]) == 2
    assert "want a vocabulary of 1..2048 rows to slice" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_bad_folders_are_one_error(llama: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert guarded(hf, ["import", str(tmp_path / "none"), "-o", str(out)]) == 2
    assert "config.json: missing" in capsys.readouterr().err
    values = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))
    assert guarded(hf, ["import", str(llama), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert "want model_type in" in error and len(error.strip().splitlines()) == 1
    assert guarded(hf, ["import", str(llama), "-o", str(llama)]) == 2 and "exists" in capsys.readouterr().err
    assert not out.exists()
