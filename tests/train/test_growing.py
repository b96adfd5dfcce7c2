"""Runs that grow, and models grown between runs: billed once, resumed exactly, never half-way."""

import json
from pathlib import Path

import pytest
import torch
from runs import interrupted_after, losses, same

from hotplate.train import checkpoint
from hotplate.train.commands import guarded
from hotplate.train.commands.grow import main as grow
from hotplate.train.commands.train import main as train
from hotplate.train.engines import DDP
from hotplate.train.errors import InputError
from hotplate.train.trained import load_trained

WIDER = (
    "--grow-at=0.5",
    "--growth.factors.width=2",
    "--growth.factors.ffn=2",
    "--growth.factors.heads=2",
)
STREAM = ("--data.mode=stream", "--model.mixer.kind=lstm", "--model.positions=none", "--optimizer.kind=muon")


def last(folder: Path) -> Path:
    return checkpoint.listing(folder / "checkpoints")[-1]


def test_a_run_grows_and_goes_on_where_it_was(train_tiny, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    flags = ("--budget=120steps", f"--run.folder={folder}", "--optimizer.lr=1e-2", "--growth.strategy.snr-db=20")
    assert train_tiny(*flags, *WIDER) == 0
    assert "parameters after step 60" in capsys.readouterr().out
    course = dict(losses(folder))
    assert abs(course[61] - course[60]) < 0.5 and course[120] < course[60] - 0.2
    found = checkpoint.load(last(folder))
    assert found.trainer["model"]["width"] == 64 and found.model["embedding.weight"].shape == (2048, 64)
    assert load_trained(folder, torch.device("cpu")).model.config.mixer.heads == 4
    assert {"train", "grow"} <= set(json.loads((folder / "summary.json").read_text())["paid_seconds"])


@pytest.mark.parametrize("mode", [(), STREAM], ids=["packed", "stream"])
@pytest.mark.parametrize("moments", ["keep", "fresh"])
def test_killed_while_growing_it_grows_again(train_tiny, tmp_path: Path, monkeypatch, mode, moments) -> None:
    flags = ["--budget=8steps", "--evaluation.every=0", f"--growth.moments={moments}", *WIDER, *mode]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_tiny(*flags, f"--run.folder={whole}") == 0

    class Killed(Exception):
        pass

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(DDP, "load", killed)  # between the old model and the new
    with pytest.raises(Killed):
        train_tiny(*flags, f"--run.folder={broken}")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    left = checkpoint.load(last(broken))
    assert left.trainer["step"] == 4 and left.trainer["model"]["width"] == 32
    assert train_tiny(*flags, f"--run.folder={broken}", "--run.resume=auto") == 0
    same(whole, broken)


def test_a_grown_run_resumes_after_growth(train_tiny, tmp_path: Path) -> None:
    flags = ["--budget=12steps", "--evaluation.every=0", "--run.checkpoint-every=0.25", *WIDER]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_tiny(*flags, f"--run.folder={whole}") == 0
    with interrupted_after(9):
        train_tiny(*flags, f"--run.folder={broken}")
    assert train_tiny(*flags, f"--run.folder={broken}", "--run.resume=auto") == 0
    same(whole, broken)


def test_both_parts_are_paid_from_one_budget_in_time(train_tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train_tiny("--budget=3s", f"--run.folder={folder}", "--evaluation.every=0", *WIDER) == 0
    plan = json.loads((folder / "environment.json").read_text())["plan"]
    small, large = plan["tokens_per_second"], plan["grown_tokens_per_second"]
    rest = plan["steps"] - plan["grows_after"]
    assert plan["grows_after"] == round(1.5 * small / 256) and rest == round(1.5 * large / 256)
    protocol = json.loads((folder / "summary.json").read_text())["protocol_hours"] * 3600
    assert protocol == pytest.approx(3, abs=256 / small + 256 / large)


def test_a_grown_model_is_trained_on(train_tiny, prepared: Path, tmp_path: Path, capsys) -> None:
    small, new, after = tmp_path / "small", tmp_path / "new", tmp_path / "after"
    assert train_tiny("--budget=20steps", f"--run.folder={small}", "--optimizer.lr=3e-3") == 0
    capsys.readouterr()
    flags = ["--width=2", "--ffn=2", "--heads=2", "--check"]
    assert grow([str(small), *flags, "-o", str(new)]) == 0
    out = capsys.readouterr().out
    assert "grow to" in out and "float64" in out and "bfloat16" in out and "cosine" in out
    facts = json.loads((new / "trainer.json").read_text())
    assert facts["model"]["width"] == 64 and facts["grown"]["step"] == 20
    assert train([str(new), "--budget=10steps", f"--run.folder={after}", "--schedule.warmup=0"]) == 0
    assert losses(after)[0][1] == pytest.approx(losses(small)[-1][1], abs=0.3)
    state = checkpoint.load(last(after)).optimizer
    assert state["step.embedding.weight"] == 30  # moments went on
    assert grow([str(small), *flags, "-o", str(tmp_path / "fresh"), "--moments=fresh"]) == 0
    again = tmp_path / "again"
    assert train([str(tmp_path / "fresh"), "--budget=2steps", f"--run.folder={again}"]) == 0
    assert checkpoint.load(last(again)).optimizer["step.embedding.weight"] == 2


def test_bad_growth_is_one_clear_error_and_writes_nothing(train_tiny, tmp_path: Path, capsys) -> None:
    small, new = tmp_path / "small", tmp_path / "new"
    assert train_tiny("--budget=2steps", f"--run.folder={small}") == 0
    bad = {
        ("--head-width=2",): "head_width cannot grow under rotary",
        ("--heads=3", "--kv-heads=2"): "divides that of heads",
        ("--width=0",): "whole factor >= 1 for width, got 0",
    }
    for flags, message in bad.items():
        assert guarded(grow, [str(small), *flags, "-o", str(new)]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, error
        assert not new.exists()
    assert guarded(grow, [str(small), "--width=2"]) == 2 and "give -o FOLDER" in capsys.readouterr().err
    assert guarded(grow, [str(tmp_path / "none"), "--width=2", "-o", str(new)]) == 2
    assert "no such run" in capsys.readouterr().err
    weights = last(small) / "model-00000.safetensors"
    weights.write_bytes(b"\x80\x04" + weights.read_bytes()[2:])  # a pickle's first bytes
    assert guarded(grow, [str(last(small)), "--width=2", "-o", str(new)]) == 2
    assert "damaged" in capsys.readouterr().err and not new.exists()
    with pytest.raises(InputError, match="nothing grows"):
        train_tiny("--budget=4steps", f"--run.folder={tmp_path / 'x'}", "--grow-at=0.5")
    with pytest.raises(InputError, match="--to gpt-mini: growth: head_width cannot grow"):
        train_tiny("--budget=4steps", f"--run.folder={tmp_path / 'x'}", "--grow-at=0.5", "--to=gpt-mini")
    with pytest.raises(InputError, match="want a model size; known: gpt-nano"):
        train_tiny("--budget=4steps", f"--run.folder={tmp_path / 'x'}", "--grow-at=0.5", "--to=gpt-huge")


def test_starting_from_another_model_says_what_differs(train_tiny, tmp_path: Path) -> None:
    small = tmp_path / "small"
    assert train_tiny("--budget=2steps", f"--run.folder={small}") == 0
    with pytest.raises(InputError, match="model.ffn|ffn: checkpoint 64, now 96"):
        train_tiny("--budget=2steps", f"--run.folder={tmp_path / 'x'}", f"--run.start={small}", "--model.ffn=96")
    assert not (tmp_path / "x" / "checkpoints").exists()
