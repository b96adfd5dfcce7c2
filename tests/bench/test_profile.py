"""The profile of a step: files that other tools read, and times that add up."""

import json
from pathlib import Path

import pytest
import torch

from hotplate.bench import gaps
from hotplate.bench.commands.profile import main
from hotplate.bench.rates import Rates
from hotplate.model.lm import LanguageModel
from hotplate.train.commands import guarded


@pytest.mark.parametrize("preset", ["gpt-nano", "lstm-nano"])
def test_profile_names_the_operations_of_a_step(preset: str, tmp_path: Path, capsys) -> None:
    flags = ["--steps=2", f"--out={tmp_path}", "--train.batch=2", "--train.data.window=16", "--train.model.vocab=64"]
    assert main([preset, *flags, "--train.execution.threads=1", "--train.device=cpu"]) == 0
    facts = json.loads((tmp_path / "operations.json").read_text())
    names = [row["name"] for row in facts["operations"]]
    assert any("addmm" in name or "::mm" in name for name in names)
    times = [row["milliseconds"] for row in facts["operations"]]
    assert times == sorted(times, reverse=True) and facts["tokens_per_second"] > 0
    product = next(row for row in facts["operations"] if row["name"] in ("aten::mm", "aten::addmm"))
    assert product["flops"] > 0 and 0 < product["floor_ms"] < product["milliseconds"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    out = capsys.readouterr().out
    assert names[0] in out and "largest gaps" in out and facts["gaps"][0] in out.replace("\n", " ")


def test_profile_runs_blocks_as_training_would(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(LanguageModel, "execute", lambda self, **how: asked.append(how))
    flags = ["--steps=1", f"--out={tmp_path}", "--train.batch=2", "--train.data.window=16", "--train.model.vocab=64"]
    main(["gpt-nano", *flags, "--train.device=cpu", "--train.execution.compile", "--train.execution.recompute"])
    assert asked == [{"compiled": True, "recompute": True}]


def test_work_counts_products_and_traffic_and_no_views() -> None:
    x, y = torch.ones(4, 8), torch.ones(8, 2)
    found = gaps.count(lambda: (x @ y).t().mul_(2.0), Rates(memory={"copy": 1e3}, matmul_flops_per_s=1e2))
    product, view, scaled = found["aten::mm"], found["aten::t"], found["aten::mul_"]
    assert (product.flops, product.moved_bytes) == (2 * 4 * 8 * 2, 4 * (32 + 16 + 8))
    assert product.floor_ms == pytest.approx(1e3 * 128 / 1e2)
    assert (view.calls, view.moved_bytes, scaled.moved_bytes) == (1, 0, 4 * 16)


def test_gaps_are_told_by_size() -> None:
    operations = [
        {"name": "a", "milliseconds": 4.0, "calls": 1.0, "floor_ms": 3.0, "flops": 1},
        {"name": "b", "milliseconds": 3.0, "calls": 300.0, "floor_ms": 0.0, "flops": 0},
        {"name": "c", "milliseconds": 1.0, "calls": 1.0, "floor_ms": None, "flops": None},
    ]
    told = gaps.in_words(operations, 10.0)
    assert told[0].startswith("b: 3.00 ms beyond its floor, 30% of the step; 300 calls")
    assert "at 75% of what arithmetic allows" in " ".join(told) and "not known" in " ".join(told)
    assert told[-1].startswith("outside all operations: 2.00 ms, 20%")


def test_profile_refuses_what_train_refuses(capsys) -> None:
    assert guarded(main, ["gpt-nanno"]) == 2
    assert "did you mean gpt-nano" in capsys.readouterr().err
