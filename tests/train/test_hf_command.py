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
    flags = ["--data.source", str(prepared), "--data.window=32", "--batch=8", "--threads=1", "--device=cpu"]
    assert evaluate([str(start), "--data", str(prepared), "--limit=500"]) == 0
    assert grow([str(start), "--width=2", "--ffn=2", "--heads=2", "-o", str(grown)]) == 0
    assert train([str(grown), *flags, "--budget=3steps", f"--run.folder={run}", "--evaluation.sample-tokens=0"]) == 0
    assert hf(["export", str(run), "-o", str(out), "--family=llama"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.config.hidden_size == 64 and model.config.num_key_value_heads == 4
    trained = checkpoint.find(run)
    assert torch.equal(model.model.embed_tokens.weight, trained.model["embedding.weight"])


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
