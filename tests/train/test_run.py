"""Whole runs: what they leave behind, how they stop and go on, and how they refuse."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from runs import losses, same, weights
from tiny import ROOT, TINY

from hotplate.train import checkpoint, loop, step
from hotplate.train.errors import InputError
from hotplate.train.sinks import read_records


def test_a_run_learns_and_leaves_everything_behind(train_tiny, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    flags = (
        "--budget=200steps",
        f"--run.folder={folder}",
        "--optimizer.lr=1e-2",
        "--run.log-steps=50",
        "--run.sinks",
        "tensorboard",
    )
    assert train_tiny(*flags) == 0
    out = capsys.readouterr().out
    assert "training documents" in out and "packed rows 9" in out
    assert "step 200/200 100.0% | loss" in out and "tok/s" in out and "tok/h" in out and "| data " in out
    records = read_records(folder / "metrics.jsonl")
    logged = [r for r in records if "loss" in r]
    assert logged[-1]["loss"] < logged[0]["loss"] - 1.0
    assert [r["step"] for r in logged] == [1, 50, 100, 150, 200]
    assert logged[-1]["tokens"] == 200 * 8 * 32 and logged[-1]["data_wait"] < 0.5
    summary = json.loads((folder / "summary.json").read_text())
    for split in ("validation", "test"):
        found = summary["splits"][split]
        assert found["normalised_perplexity"] < found["unigram_normalised_perplexity"]
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "sample.txt").exists() and any((folder / "tensorboard").iterdir())
    resolved = tomllib.loads((folder / "config.toml").read_text())
    assert resolved["budget"] == "200steps" and resolved["model"]["width"] == 32
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__ and environment["plan"]["steps"] == 200


def test_a_time_budget_is_measured_and_ends_the_schedule_exactly(train_tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train_tiny("--budget=2s", f"--run.folder={folder}", "--evaluation.every=0", "--schedule.minimum=0.25") == 0
    plan = json.loads((folder / "environment.json").read_text())["plan"]
    assert plan["steps"] == round(2 * plan["tokens_per_second"] / (8 * 32))
    last = [r for r in read_records(folder / "metrics.jsonl") if "loss" in r][-1]
    assert last["step"] == plan["steps"]
    assert last["learning_rate"] == pytest.approx(0.25 * 6e-4)
    assert last["protocol_hours"] == pytest.approx(last["budget_hours"])
    assert last["protocol_hours"] * 3600 == pytest.approx(2, abs=8 * 32 / plan["tokens_per_second"])


def test_dry_run_reproduces_a_published_budget_and_writes_nothing(train_tiny, tmp_path: Path, capsys) -> None:
    flags = ["--budget=6h", "--reference=rtx3090", "--tokens-per-second=55416", "--dry-run"]
    assert train_tiny(*flags, f"--run.folder={tmp_path / 'run'}") == 0
    out = capsys.readouterr().out
    assert (
        "4,675,725 steps, 1,196,985,600 tokens" in out
        and "given for rtx3090" in out
        and "parameters" in out
        and "checkpoints" in out
    )
    assert not (tmp_path / "run").exists()


MODES = {
    "packed": (),
    "stream": (
        "--data.mode=stream",
        "--model.mixer.kind=lstm",
        "--model.positions=none",
        "--micro-batch=4",
        "--optimizer.kind=muon",
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_resumed_equals_uninterrupted_bit_for_bit(train_tiny, tmp_path: Path, monkeypatch, mode: str) -> None:
    common = ["--budget=12steps", "--evaluation.every=0.34", "--run.checkpoint-every=0.25", *MODES[mode]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_tiny(*common, f"--run.folder={whole}") == 0

    class Crash(Exception):
        pass

    kept = loop.Meter.add

    def crash(self, update):
        kept(self, update)
        self.total = getattr(self, "total", 0) + 1
        if self.total == 8:  # after the checkpoint of step 6
            raise Crash

    monkeypatch.setattr(loop.Meter, "add", crash)
    with pytest.raises(Crash):
        train_tiny(*common, f"--run.folder={broken}")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert checkpoint.step_of(checkpoint.listing(broken / "checkpoints")[-1]) == 6
    assert losses(broken)[-1][0] == 7
    assert train_tiny(*common, f"--run.folder={broken}", "--run.resume=auto") == 0
    same(whole, broken)


def test_killed_outright_and_resumed_by_the_same_command(prepared: Path, nursery, hotplate, tmp_path: Path) -> None:
    flags = [*TINY, f"--data.source={prepared}", "--budget=40steps", "--run.checkpoint-every=0.1", "--run.resume=auto"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    hotplate(*flags, f"--run.folder={whole}")
    for _ in range(2):
        newest = checkpoint.listing(broken / "checkpoints")[-1:]
        process = nursery.start(["train", *flags, f"--run.folder={broken}"])
        while checkpoint.listing(broken / "checkpoints")[-1:] == newest and process.poll() is None:
            time.sleep(0.002)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    hotplate(*flags, f"--run.folder={broken}")
    same(whole, broken)
    paid = json.loads((broken / "summary.json").read_text())["paid_seconds"]
    assert paid["train"] > 0


def test_the_trainers_file_is_a_program(prepared: Path, tmp_path: Path) -> None:
    """Without torchrun."""
    flags = [*TINY, f"--data.source={prepared}", "--budget=2steps", "--run.folder=run"]
    command = [sys.executable, str(ROOT / "train" / "main.py"), *flags]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=240)
    assert [number for number, _ in losses(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_says_so(prepared: Path, nursery, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    flags = [
        *TINY,
        f"--data.source={prepared}",
        "--budget=100000steps",
        f"--run.folder={folder}",
        "--evaluation.every=0",
    ]
    process = nursery.start(["train", *flags])
    process.wait_for("\nstep 5/")
    process.send(number)
    assert process.wait(60) == 0
    name = signal.Signals(number).name
    assert f"stopped by {name} after step" in process.text and "--run.resume auto" in process.text
    note = json.loads((folder / "preempted.json").read_text())
    assert note["signal"] == name
    saved = checkpoint.load(checkpoint.listing(folder / "checkpoints")[-1])
    assert saved.trainer["step"] == note["step"] >= 5


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_equal_one(prepared: Path, hotplate, tmp_path: Path, mode: str) -> None:
    flags = [*TINY, f"--data.source={prepared}", "--budget=10steps", "--optimizer.eps=1e-4", *MODES[mode]]
    hotplate(*flags, f"--run.folder={tmp_path / 'one'}")
    hotplate(*flags, f"--run.folder={tmp_path / 'two'}", ranks=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(1, 11))
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert b == pytest.approx(a, abs=1e-5)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_narrow_gradients_of_all_micro_batches_are_exchanged(prepared: Path, hotplate, tmp_path: Path) -> None:
    flags = [*TINY, f"--data.source={prepared}", "--budget=2steps", "--precision=bf16", "--micro-batch=2"]
    hotplate(*flags, f"--run.folder={tmp_path / 'one'}")
    hotplate(*flags, f"--run.folder={tmp_path / 'two'}", ranks=2)
    moments = []
    for name in ("one", "two"):
        state = checkpoint.load(checkpoint.listing(tmp_path / name / "checkpoints")[-1]).optimizer
        moments.append(
            torch.cat([value.flatten() for key, value in sorted(state.items()) if key.startswith("exp_avg.")])
        )
    assert (moments[0] - moments[1]).norm() < 0.03 * moments[0].norm()


def test_a_run_goes_on_with_another_number_of_ranks(prepared: Path, hotplate, tmp_path: Path) -> None:
    flags = [*TINY, f"--data.source={prepared}", "--budget=8steps", *MODES["stream"], "--optimizer.eps=1e-4"]
    hotplate(*flags, f"--run.folder={tmp_path / 'one'}")
    stop = [f"--run.folder={tmp_path / 'two'}", "--run.checkpoint-every=0.5"]
    hotplate(*flags, *stop, ranks=2)
    last = checkpoint.listing(tmp_path / "two" / "checkpoints")[-1]
    assert len(checkpoint.listing(tmp_path / "two" / "checkpoints")) == 2
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    hotplate(*flags, *stop, "--run.resume=auto")
    for (_, a), (_, b) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, abs=1e-5)


def test_the_precision_of_a_run_is_that_of_its_first_machine(train_tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    flags = ["--precision=auto", "--budget=2steps", f"--run.folder={tmp_path}", "--run.resume=auto"]
    monkeypatch.setattr(step, "takes_halves", lambda dtype: True)
    assert train_tiny(*flags) == 0
    assert "precision   bf16 on cpu" in capsys.readouterr().out
    assert tomllib.loads((tmp_path / "config.toml").read_text())["precision"] == "bf16"
    monkeypatch.setattr(step, "takes_halves", lambda dtype: False)
    with pytest.raises(InputError, match="precision: checkpoint 'bf16', now 'fp32'"):
        train_tiny(*flags)
    assert train_tiny(*flags, "--precision=bf16") == 0


def test_non_finite_updates_are_counted_then_end_the_run(train_tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    from hotplate.train.step import Step

    kept = Step.__call__

    def poisoned(self, batches, states, lr):
        from dataclasses import replace

        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3 or self.calls > 6:
            batches = [replace(b, weights=b.weights * float("nan")) for b in batches]
        return kept(self, batches, states, lr)

    monkeypatch.setattr(Step, "__call__", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="the last 4 updates had non-finite gradients"):
        train_tiny("--budget=40steps", f"--run.folder={folder}", "--optimizer.max-skipped=4", "--evaluation.every=0")
    records = read_records(folder / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [0, 0, 1, 1, 1, 1, 2, 3, 4, 5]
    saved = checkpoint.load(checkpoint.listing(folder / "checkpoints")[-1])
    assert all(value.isfinite().all() for value in saved.model.values())


def test_two_processes_cannot_share_a_run_folder(prepared: Path, tmp_path: Path, hotplate) -> None:
    from hotplate.train.guard import RunLock

    lock = RunLock(tmp_path / "run")
    flags = [*TINY, f"--data.source={prepared}", "--budget=2steps", f"--run.folder={tmp_path / 'run'}"]
    said = hotplate(*flags, expect=2)
    assert f"in use by process {os.getpid()}" in said and "another --run.folder" in said
    lock.release()
    hotplate(*flags)


def test_a_full_disk_costs_a_warning_not_the_run(train_tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    kept, failures = checkpoint.write_shard, []

    def full(*arguments):
        if not failures:
            failures.append(arguments)
            raise OSError(28, "No space left on device")
        return kept(*arguments)

    monkeypatch.setattr(checkpoint, "write_shard", full)
    assert train_tiny("--budget=4steps", f"--run.folder={tmp_path / 'run'}", "--run.checkpoint-every=0.5") == 0
    assert "checkpoint of step 2 not saved" in capsys.readouterr().err
    assert checkpoint.listing(tmp_path / "run" / "checkpoints")
