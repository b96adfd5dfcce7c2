"""The profile of a step: files that other tools read, and times that add up."""

import json
from pathlib import Path

import pytest

from hotplate.bench.commands.profile import main
from hotplate.train.commands import guarded


@pytest.mark.parametrize("preset", ["gpt-nano", "lstm-nano"])
def test_profile_names_the_operations_of_a_step(preset: str, tmp_path: Path, capsys) -> None:
    flags = ["--steps=2", f"--out={tmp_path}", "--train.batch=2", "--train.data.window=16", "--train.model.vocab=64"]
    assert main([preset, *flags, "--train.threads=1", "--train.device=cpu"]) == 0
    facts = json.loads((tmp_path / "operations.json").read_text())
    names = [row["name"] for row in facts["operations"]]
    assert any("addmm" in name or "::mm" in name for name in names)
    times = [row["milliseconds"] for row in facts["operations"]]
    assert times == sorted(times, reverse=True) and facts["tokens_per_second"] > 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert names[0] in capsys.readouterr().out


def test_profile_refuses_what_train_refuses(capsys) -> None:
    assert guarded(main, ["gpt-nanno"]) == 2
    assert "did you mean gpt-nano" in capsys.readouterr().err
