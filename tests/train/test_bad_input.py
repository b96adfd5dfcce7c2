"""Mistakes at the command line and in files: one message that says what, where and how to mend it, exit code 2."""

import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, invented_text

from hotplate.train import checkpoint
from hotplate.train.commands import data, evaluate, generate, guarded, train
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.shards import HEADER
from hotplate.train.data.tokenizer import train_tokenizer


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "own"))


@pytest.fixture
def refuse_training(refused, tmp_path: Path):
    """A function (data set, *flags) -> the message of a training run that must not start."""

    def run(source: Path | str, *flags: str) -> str:
        return refused(train, *TINY, "--budget=3steps", f"--data.source={source}", *flags)

    return run


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_updates_are_repeated_by_ddp_alone(prepared: Path, refuse_training, engine: str) -> None:
    message = refuse_training(prepared, f"--engine={engine}", "--guard.out-of-memory=halve")
    assert f"--engine {engine}: updates that ran out of memory are repeated by engine ddp only" in message


def test_no_memory_to_measure_with_is_advice(prepared: Path, refuse_training, monkeypatch) -> None:
    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.25 GiB.\nmore")

    monkeypatch.setattr("hotplate.train.plan.measure", full)
    message = refuse_training(prepared, "--budget=60s")
    assert "out of memory: CUDA out of memory. Tried to allocate 7.25 GiB." in message
    assert "use --micro-batch 4 (now 8" in message


def shard_of(folder: Path) -> Path:
    manifest = json.loads((folder / "dataset.json").read_text())
    return folder / manifest["splits"]["train"][0]["file"]


def test_truncated_shard(own: Path, refuse_training) -> None:
    shard = shard_of(own)
    shard.write_bytes(shard.read_bytes()[:-3])
    message = refuse_training(own)
    assert str(shard) in message and str(shard.stat().st_size) in message.replace(",", "")


def test_corrupt_shard(own: Path, refuse_training) -> None:
    shard = shard_of(own)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert str(shard) in refuse_training(own)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00 not ours", b"\x00" * 5000], ids=["empty", "npy", "zeros"])
def test_foreign_shard(own: Path, refuse_training, content: bytes) -> None:
    shard = shard_of(own)
    shard.write_bytes(content)
    assert str(shard) in refuse_training(own)


def test_token_id_outside_the_vocabulary(own: Path, refuse_training) -> None:
    """A shard whose header is whole but claims fewer ids than its tokens use."""
    shard = shard_of(own)
    raw = shard.read_bytes()
    fields = list(HEADER.unpack(raw[: HEADER.size]))
    fields[6], fields[-1] = 300, 0  # vocabulary, checksum
    header = HEADER.pack(*fields)[:-4]
    shard.write_bytes(header + struct.pack("<I", zlib.crc32(header)) + raw[HEADER.size :])
    body = np.frombuffer(raw, np.uint16, fields[4], HEADER.size)
    at = int((body >= 300).argmax())
    assert f"{shard}: id {body[at]} at offset {at} is outside the vocabulary of 300" in refuse_training(own)


def test_tokeniser_that_is_not_the_data_sets(own: Path, refuse_training, tmp_path: Path) -> None:
    tokenizer = own / json.loads((own / "dataset.json").read_text())["tokenizer_file"]
    before = Dataset.open(own).tokenizer.fingerprint
    train_tokenizer([invented_text(9000, seed) for seed in range(70, 74)], 2048, tmp_path / "other.model")
    shutil.copy(tmp_path / "other.model", tokenizer)
    message = refuse_training(own)
    assert before[:16] in message


def test_too_little_data(own: Path, refuse_training) -> None:
    message = refuse_training(own, "--batch=4096")
    assert "4,096 rows x 32" in message and "documents" in message


def test_raw_text_instead_of_a_data_set(corpus: Path, refuse_training) -> None:
    assert "hotplate data prepare" in refuse_training(corpus)


def test_a_folder_that_is_not_there(refuse_training) -> None:
    assert "nowhere" in refuse_training("nowhere")


def test_vocabulary_larger_than_the_models(own: Path, refuse_training) -> None:
    message = refuse_training(own, "--model.vocab=1000")
    assert "2048 ids, the model 1000" in message and "--model.vocab 2048" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_missing_cuda_is_said_before_the_model_is_built(own: Path, refuse_training, monkeypatch) -> None:
    from hotplate.model.lm import LanguageModel

    monkeypatch.setattr(LanguageModel, "build", lambda *_: pytest.fail("the model was built first"))
    message = refuse_training(own, "--device=cuda")
    assert "no CUDA device" in message and "--device cpu" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget=soon"], ["--budget 'soon'", "6h"]),
        (["--budget=10tok"], ["less than one step of 256 tokens"]),
        (["--micro-batch=3"], ["--micro-batch 3", "[1, 2, 4, 8]"]),
        (["--model.positions=learned", "--model.context=16"], ["--data.window 32 exceeds --model.context 16"]),
    ],
)
def test_impossible_settings(own: Path, refuse_training, flags: list[str], words: list[str]) -> None:
    message = refuse_training(own, *flags)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.mixer.kv-heads=3"], "kv_heads that divides"),
        (["--model.layers=0"], "sizes >= 1"),
        (["--bacth=3"], "--bacth"),
        (["--batch=many"], "many"),
    ],
)
def test_flags_that_no_config_takes(own: Path, flags: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        guarded(train.main, [*TINY, f"--data.source={own}", *flags])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_run_folder_that_holds_a_run(own: Path, refuse_training, tmp_path: Path) -> None:
    flags = [
        *TINY,
        f"--data.source={own}",
        "--budget=3steps",
        f"--run.folder={tmp_path / 'run'}",
        "--evaluation.every=0",
    ]
    assert train.main(flags) == 0
    before = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    message = refuse_training(own, f"--run.folder={tmp_path / 'run'}")
    assert "--run.resume auto" in message
    assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == before


CHANGES = [
    (["--model.layers=3"], ["model.layers: checkpoint 2, now 3"], False),
    (["--batch=16"], ["batch: checkpoint 8, now 16"], False),
    (["--seed=5"], ["seed: checkpoint 0, now 5"], False),
    (["--optimizer.lr=0.1", "--budget=9steps"], ["budget: checkpoint '3steps', now '9steps'", "optimizer.lr"], True),
]


@pytest.mark.parametrize(("flags", "words", "allowed"), CHANGES, ids=["model", "batch", "seed", "course"])
def test_resuming_with_a_changed_config(own: Path, refused, tmp_path, capsys, flags, words, allowed) -> None:
    common = [
        *TINY,
        f"--data.source={own}",
        f"--run.folder={tmp_path / 'run'}",
        "--evaluation.every=0",
        "--budget=3steps",
    ]
    assert train.main(common) == 0
    before = checkpoint.listing(tmp_path / "run" / "checkpoints")
    capsys.readouterr()
    message = refused(train, *common, *flags, "--run.resume=auto")
    for word in words:
        assert word in message
    assert checkpoint.listing(tmp_path / "run" / "checkpoints") == before
    permitted = [*common, *flags, "--run.resume=auto", "--run.allow-config-change"]
    if allowed:
        assert guarded(train.main, permitted) == 0
        assert checkpoint.step_of(checkpoint.listing(tmp_path / "run" / "checkpoints")[-1]) == 9
    else:
        assert guarded(train.main, permitted) == 2


def test_resuming_on_changed_data(own: Path, corpus: Path, refused, tmp_path: Path, capsys) -> None:
    flags = [*TINY, f"--run.folder={tmp_path / 'run'}", "--evaluation.every=0", "--budget=3steps"]
    assert train.main([*flags, f"--data.source={own}"]) == 0
    other = tmp_path / "other"
    again = ["prepare", f"--source={corpus}", f"--out={other}", "--seed=9", "--workers=1"]
    tokenizer = own / json.loads((own / "dataset.json").read_text())["tokenizer_file"]
    assert data.main([*again, f"--tokenizer={tokenizer}"]) == 0
    capsys.readouterr()
    message = refused(train, *flags, f"--data.source={other}", "--run.resume=auto")
    assert "the data set changed" in message and "--data.allow-change" in message


def test_a_damaged_checkpoint_falls_back_and_a_damaged_run_stops(own: Path, refused, tmp_path: Path, capsys) -> None:
    flags = [*TINY, f"--data.source={own}", f"--run.folder={tmp_path / 'run'}", "--evaluation.every=0"]
    flags += ["--budget=4steps", "--run.checkpoint-every=0.5"]
    assert train.main(flags) == 0
    first, last = checkpoint.listing(tmp_path / "run" / "checkpoints")
    (last / "model-00000.safetensors").write_bytes(b"short")
    assert train.main([*flags, "--run.resume=auto"]) == 0
    captured = capsys.readouterr()
    assert "model-00000.safetensors: damaged" in captured.err and "at step 2" in captured.out
    for path in (first, last):
        (path / "optimizer-00000.safetensors").unlink()
    message = refused(train, *flags, "--run.resume=auto")
    assert "no checkpoint can be read" in message and "optimizer-00000.safetensors" in message


def test_a_sink_whose_package_is_missing(own: Path, refuse_training, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'hotplate[wandb]'" in refuse_training(own, "--run.sinks", "wandb", "--run.folder=run")


def test_empty_sources_for_prepare(refused, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    message = refused(data, "prepare", f"--source={tmp_path / 'texts'}", f"--out={tmp_path / 'out'}", "--vocab=2048")
    assert "texts" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [evaluate, generate], ids=["evaluate", "generate"])
def test_reading_commands_without_a_run(refused, command) -> None:
    assert "nowhere: no such run" in refused(command, "nowhere")
    assert "want a run folder first" in refused(command)


def test_evaluate_and_generate_read_a_run(own: Path, tmp_path: Path, capsys, refused) -> None:
    folder = tmp_path / "run"
    assert train.main([*TINY, f"--data.source={own}", f"--run.folder={folder}", "--budget=3steps"]) == 0
    summary = json.loads((folder / "summary.json").read_text())["splits"]["test"]
    capsys.readouterr()
    result = tmp_path / "result.json"
    assert evaluate.main([str(folder), "--split", "all", f"--json={result}"]) == 0
    (trained_on,) = json.loads(result.read_text())["sets"]
    found = trained_on["splits"]
    assert set(found) == {"train", "validation", "test"}
    assert found["test"]["nats"] == pytest.approx(summary["nats"], rel=1e-6)
    assert evaluate.main([str(folder), "--last-n=8", f"--json={result}"]) == 0
    assert json.loads(result.read_text())["sets"][0]["splits"]["test"]["targets"] == summary["targets"]
    capsys.readouterr()
    assert generate.main([str(folder), "--prompt=the", "--tokens=5", "--seed=3"]) == 0
    first = capsys.readouterr().out
    assert generate.main([str(folder), "--prompt=the", "--tokens=5", "--seed=3"]) == 0
    assert first == capsys.readouterr().out and first.startswith("the")
    assert "no split 'valid'" in refused(evaluate, str(folder), "--split", "valid")
    assert "last_n" in refused(evaluate, str(folder), "--last-n=99")
    assert "temperature" in refused(generate, str(folder), "--temperature=-1")


def test_the_command_line_knows_its_commands(monkeypatch, capsys) -> None:
    from hotplate.train import commands

    for arguments, code, words in (
        (["hotplate"], 0, "train"),
        (["hotplate", "trian"], 2, "did you mean train"),
        (["hotplate", "evaluate", "nowhere"], 2, "no such run"),
    ):
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            commands.main()
        captured = capsys.readouterr()
        assert stopped.value.code == code and words in captured.out + captured.err
