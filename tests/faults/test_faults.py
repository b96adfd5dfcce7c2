"""Faults brought about for real, few times each: the catalogue's trials. `hotplate faults` does all of them, often."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from hotplate.bench.commands import faults as command
from hotplate.bench.faults import catalogue
from hotplate.bench.faults.arena import Arena, Broken
from hotplate.bench.faults.kills import soak
from hotplate.bench.faults.scenario import Outcome, Scenario

NEEDS_MOUNT = {"full_disk", "too_small_disk", "read_only_disk", "failing_metrics"}
QUICK = [scenario for scenario in catalogue.scenarios() if scenario.quick]


def may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: f"{scenario.name} {scenario.fault}")
def test_what_is_promised_is_kept(arena: Arena, scenario: Scenario) -> None:
    if (why := catalogue.why_not(scenario)) is not None:
        pytest.skip(why)
    if scenario.trial.__name__ in NEEDS_MOUNT and not may_mount():
        pytest.skip("mounting a tmpfs is not allowed here")
    assert scenario.trial(arena, scenario.quick)


def test_a_run_killed_again_and_again_ends_as_the_whole_one(arena: Arena) -> None:
    found = soak(arena, cycles=6, steps=400, longest=0.8)
    assert found["bit_identical"] and found["tokens"] == found["tokens_wanted"] == 25_600


def test_every_fault_of_the_list_has_a_trial() -> None:
    assert {scenario.name for scenario in catalogue.scenarios()} == {f"R{n}" for n in range(1, 35)}


def test_a_broken_promise_is_an_outcome_and_an_exit_code(arena: Arena, monkeypatch, tmp_path: Path, capsys) -> None:
    def trial(place: Arena, times: int) -> str:
        raise Broken("a checkpoint was lost")

    scenario = Scenario("R1", "fault", "injected", "promised", trial, times=3, quick=1)
    outcome = catalogue.tried(scenario, arena, 3)
    assert outcome.kept is False and "a checkpoint was lost" in outcome.happened
    monkeypatch.setattr(catalogue, "scenarios", lambda: [scenario])
    monkeypatch.setattr(catalogue, "arena", lambda: contextlib.nullcontext(arena))
    assert command.main(["R1", "--quick", "--json", str(tmp_path / "result.json")]) == 1
    assert json.loads((tmp_path / "result.json").read_text())["faults"][0]["kept"] is False
    assert "1 promises broken" in capsys.readouterr().out


def test_the_page_is_that_of_the_result_files() -> None:
    assert command.main(["--page", "--check"]) == 0, "run: hotplate faults --page"


def test_the_page_says_what_was_broken(tmp_path: Path) -> None:
    rows = [
        Outcome("R1", "kill", "SIGKILL", "whole", 3, "was whole", True, 1.0),
        Outcome("R2", "kill", "SIGKILL", "same | same", 3, "was\nnot", False, 1.0),
        Outcome("R30", "peer", "SIGKILL", "restart", 0, "not tried: needs two CUDA devices", None, 0.0),
    ]
    machine = {"name": "Box", "cores": 2, "date": "2026-01-02T00:00:00"}
    catalogue.write(tmp_path / "faults-box-2026-01-02.json", rows, machine)
    text = catalogue.section(tmp_path)
    assert "| R1 | kill | SIGKILL | 3 | whole | was whole |" in text
    assert "| R2 | kill | SIGKILL | 3 | same \\| same | **broken**: was not |" in text
    assert "| not tried: needs two CUDA devices |" in text and "Box, 2 cores, 2026-01-02" in text
