"""Sweeps: plans checked as a whole, equal compute, skipping, going on, failures that stop nothing, clusters."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from hotplate.train import checkpoint
from hotplate.train.commands import guarded, sweep, train
from hotplate.train.errors import InputError
from hotplate.train.science.sweep import STUDIES, Execution, load_plan, plan_runs, prepare, run_process, throughputs
from hotplate.train.settings import load_preset
from hotplate.train.sinks import read_records

PLAN = """
models = ["gpt-nano", "qlstm-nano", "lstm-nano"]
classes = ["1s"]
folder = "runs"
[train]
batch = 8
device = "cpu"
[train.execution]
threads = 1

[train.model]
layers = 1
width = 32
ffn = 64
vocab = 2048
[train.data]
source = "{data}"
window = 32
[train.evaluation]
every = 0.0
splits = ["test"]
sample_tokens = 0
[train.run]
checkpoint_every = 0.5
log_steps = 1
[model.lstm-nano.data]
source = "{data}-missing"
"""
SPEEDS = {"gpt-nano": 5120.0, "qlstm-nano": 2560.0, "lstm-nano": 2560.0}  # of 256 tokens a step: 20 and 10 steps


@pytest.fixture
def plan(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan file, in the working directory, whose throughputs are known: nothing is measured."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(data=prepared))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "throughput.json").write_text(json.dumps(SPEEDS))
    return path


def seconds_spent(folder: Path) -> tuple[float, float]:
    """(measured accelerator-seconds that a run consumed, seconds of one of its steps)."""
    summary = json.loads((folder / "summary.json").read_text())
    return summary["protocol_hours"] * 3600, summary["protocol_hours"] * 3600 / summary["steps"]


def in_this_process(command: Sequence[str], log: BinaryIO) -> int:
    """A run without the seconds that loading torch takes."""
    assert tuple(command[:3]) == (sys.executable, "-m", "hotplate.train.main")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = guarded(train.main, command[3:])
    log.write(text.getvalue().encode())
    return code


def test_a_sweep_spends_equal_compute_survives_failures_and_goes_on(
    plan: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotplate.train.science.sweep.run_process", in_this_process)
    assert sweep.main([str(plan)]) == 1
    out = capsys.readouterr().out
    assert "lstm-nano 1s seed 0 failed with exit code 2" in out and "-missing" in out and "2 of 3 runs done" in out
    gpt, qlstm = (tmp_path / "runs" / model / "1s" / "seed-0" for model in ("gpt-nano", "qlstm-nano"))
    for folder in (gpt, qlstm):
        spent, step = seconds_spent(folder)
        assert abs(spent - 1.0) <= step
        assert spent == pytest.approx(1.0, abs=step / 2 + 1e-9)  # the nearest whole number of steps

    whole = read_records(gpt / "metrics.jsonl")
    (gpt / "summary.json").unlink()  # as if it had been killed after the first checkpoint
    last = checkpoint.listing(gpt / "checkpoints")[-1]
    shutil.rmtree(last)
    kept = (qlstm / "summary.json").stat().st_mtime_ns
    plan.write_text(plan.read_text().replace("-missing", ""))
    shutil.rmtree(tmp_path / "runs" / "lstm-nano")
    assert sweep.main([str(plan)]) == 0
    out = capsys.readouterr().out
    assert "going on with gpt-nano" in out and "qlstm-nano 1s seed 0" not in out.split("runs done")[0].split("│")[0]
    assert "3 of 3 runs done" in out and (qlstm / "summary.json").stat().st_mtime_ns == kept
    again = read_records(gpt / "metrics.jsonl")
    assert [(r["step"], r.get("loss"), r["protocol_hours"]) for r in again] == [
        (r["step"], r.get("loss"), r["protocol_hours"]) for r in whole
    ]
    assert seconds_spent(gpt)[0] == pytest.approx(1.0)
    paid = [r["paid_hours"] for r in again]
    assert paid == sorted(paid)  # what was paid before the stop is counted on, once


@pytest.fixture
def interruptible():
    """Whoever started the tests may have had SIGINT ignored, as shells do for jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_the_run_to_save(tmp_path: Path, interruptible: None) -> None:
    saving = "import pathlib, sys, time; time.sleep(1.2); pathlib.Path(sys.argv[1]).touch()"
    interrupt = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt), (tmp_path / "log").open("wb") as log:
        run_process([sys.executable, "-c", saving, str(tmp_path / "saved")], log)
    assert (tmp_path / "saved").exists()


def test_status_starts_nothing(plan: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Execution, "__call__", None)
    assert sweep.main([str(plan), "--status"]) == 0
    assert "0 of 3 runs done" in capsys.readouterr().out


def test_a_stopped_run_ends_the_sweep_with_what_to_do(plan: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(Execution, "__call__", lambda self: 0)  # it saved on a signal, and left no summary
    assert guarded(sweep.main, [str(plan)]) == 2
    assert "gpt-nano 1s seed 0 was stopped and saved; the same command goes on" in capsys.readouterr().err


def test_throughput_is_measured_once_per_model_and_kept(plan: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "runs" / "throughput.json").unlink()
    started = []
    monkeypatch.setattr(Execution, "__call__", lambda self: started.append(self.command) or 1)
    monkeypatch.setattr("hotplate.train.commands.sweep.show", lambda runs: None)
    monkeypatch.setattr("hotplate.train.science.sweep.failure", lambda run: "")
    assert sweep.main([str(plan)]) == 1
    speeds = json.loads((tmp_path / "runs" / "throughput.json").read_text())
    assert set(speeds) == set(SPEEDS) and len(started) == 3
    assert capsys.readouterr().out.count("throughput ") == 3
    assert sweep.main([str(plan)]) == 1
    assert "throughput " not in capsys.readouterr().out
    assert f"tokens_per_second = {speeds['gpt-nano']}" in Path(started[0][-1]).read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"gpt-nano": 1', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1.0]", "want a JSON object, got list"),
        (b'{"gpt-nano": "fast"}', "gpt-nano: want tokens/s above 0, got 'fast'"),
        (b'{"gpt-nano": -1.0}', "gpt-nano: want tokens/s above 0, got -1.0"),
        (b'{"gpt-nano": NaN}', "gpt-nano: want tokens/s above 0, got nan"),
    ],
)
def test_damaged_throughputs_start_nothing_and_say_what_to_do(
    plan: Path, tmp_path: Path, content: bytes, message: str, monkeypatch, capsys
) -> None:
    (tmp_path / "runs" / "throughput.json").write_bytes(content)
    monkeypatch.setattr(Execution, "__call__", None)
    assert guarded(sweep.main, [str(plan)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "throughput.json: " in line and message in line and "delete it: every model's throughput" in line


@pytest.mark.parametrize(
    ("name", "content", "message", "mend"),
    [
        ("failed.json", b'{"last": ', "not JSON", "delete it, and sweep again"),
        ("failed.json", b"[]", "want a JSON object, got list", "delete it, and sweep again"),
        ("failed.json", b'{"code": 1}', "last: want text, got None", "delete it, and sweep again"),
        ("summary.json", b"\xff\xfe", "not JSON", "delete it, and sweep again"),
        ("summary.json", b'{"tokens": 3}', "not the summary of a run: KeyError 'splits'", "delete it, and sweep again"),
        ("summary.json", b'{"splits": []}', "not the summary of a run: AttributeError", "delete it, and sweep again"),
        ("gpt-nano.toml", b"batch = ", "not valid TOML", "delete it if the folder's run is of this plan"),
        ("gpt-nano.toml", b"\xff", "not valid TOML", "delete it if the folder's run is of this plan"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(
    plan: Path, name: str, content: bytes, message: str, mend: str, capsys
) -> None:
    folder = plan_runs(load_plan(str(plan)), "plan")[0].folder
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    assert guarded(sweep.main, [str(plan), "--status"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / name}: " in line and message in line and mend in line


def test_parameters_of_a_cluster_nested_too_deeply_are_a_mistake(plan: Path, capsys) -> None:
    assert guarded(sweep.main, [str(plan), f"--slurm={'[' * 100_000}"]) == 2
    assert "--slurm: not JSON: nested too deeply" in capsys.readouterr().err


def test_a_reference_card_replaces_measuring(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "throughput.json").unlink()
    named = replace(plan_runs(load_plan(str(plan)), "plan")[0], model="gpt-mini", config=load_preset("gpt-mini"))
    runs = [replace(named, config=replace(named.config, reference="RTX 3090"))]
    assert throughputs(runs, tmp_path / "runs", print) == {"gpt-mini": 238_719.0}
    wrong = replace(runs[0], model="gpt-nano", config=replace(load_preset("gpt-nano"), reference="RTX 3090"))
    with pytest.raises(InputError, match="no published throughput of gpt-nano"):
        throughputs([wrong], tmp_path / "runs", print)


def test_jobs_go_through_submitit_and_are_queued_again(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    done = Execution((sys.executable, "-m", "hotplate.train.main", "--presets"), str(tmp_path))
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="debug")
    assert executor.submit(done).result() == 0
    assert "gpt-nano\n" in (tmp_path / "log.txt").read_text()
    wrong = Execution((sys.executable, "-c", "raise SystemExit('no luck')"), str(tmp_path))
    assert wrong() == 1 and json.loads((tmp_path / "failed.json").read_text()) == {"code": 1, "last": "no luck"}
    again = wrong.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.function is wrong


def test_without_submitit_the_executor_says_what_to_install(plan: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert guarded(sweep.main, [str(plan), "--executor", "slurm"]) == 2
    assert "pip install 'hotplate[slurm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gpt-nano", "gpt-nan"), "models: preset: 'gpt-nan' is neither"),
        (('["1s"]', '["1x"]'), "want a positive amount like 90s"),
        (('["1s"]', '["5steps"]'), "want accelerator time"),
        (('["1s"]', "[]"), "classes: want at least one"),
        (('["1s"]', '["1s", "1s"]'), "want each once"),
        (("batch", "bacth"), "train: no field 'bacth'; did you mean 'batch'"),
        (("folder", "foldr"), "no field 'foldr'; did you mean 'folder'"),
        (("[model.lstm-nano.data]", "[model.lstm-nan.data]"), "did you mean 'lstm-nano'"),
        (("batch = 8", 'budget = "3s"'), "budget is the sweep's to set"),
        (("[model.lstm-nano.data]", "[[model]]"), "model: want a table"),
        (("models", "models = 3 #"), "want a list"),
        (("[train]", "[train"), "not valid TOML"),
    ],
)
def test_a_wrong_plan_starts_nothing(plan: Path, tmp_path: Path, change, message: str, monkeypatch) -> None:
    plan.write_text(plan.read_text().replace(*change))
    monkeypatch.setattr(Execution, "__call__", None)
    with pytest.raises(InputError, match=message):
        sweep.main([str(plan)])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["throughput.json"]


def test_a_folder_of_another_plan_is_not_taken_for_done(plan: Path) -> None:
    run = plan_runs(load_plan(str(plan)), "plan")[0]
    prepare(run, SPEEDS)
    plan.write_text(plan.read_text().replace("batch = 8", "batch = 4"))
    with pytest.raises(InputError, match="holds a run of another plan: batch was 8, is 4"):
        plan_runs(load_plan(str(plan)), "plan")


@pytest.mark.parametrize("name", [path.stem for path in STUDIES.glob("*.toml")])
def test_shipped_studies_are_plans(name: str) -> None:
    runs = plan_runs(load_plan(name), name)
    assert [run.config.budget for run in runs] == sorted(
        (run.config.budget for run in runs), key=lambda t: float(t[:-1])
    )
    assert len({run.folder for run in runs}) == len(runs)


def test_an_unknown_study_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="nano"):
        load_plan("nan")
