"""Flags, cases and the result file of the benchmarks under pytest: see test_cases.py."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hotplate.bench import plots, registry, results, timing
from hotplate.bench.commands.bench import OUT_OF_TIME
from hotplate.bench.harness import Case, NotTimed
from hotplate.bench.table import show
from hotplate.bench.timing import Meter, Samples

ROUNDS, QUICK_ROUNDS = 15, 5
ROWS = pytest.StashKey[list[results.Row]]()
CURRENT = pytest.StashKey[tuple[Case, dict[str, Samples] | NotTimed]]()
BEGIN = pytest.StashKey[float]()
LEFT_OUT = pytest.StashKey[bool]()  # whether --seconds kept a case from being timed


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hotplate")
    group.addoption("--rooms", default=",".join(registry.names()), help="benchmarks to run, by commas; default: all")
    group.addoption("--on", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption("--quick", action="store_true", help="small shapes, few rounds: shows that everything runs")
    group.addoption("--threads", type=int, default=1, help="CPU threads; with 1, wall and processor time compare")
    group.addoption("--rows", default=None, help="result file; default: results/MACHINE-DATE, none when quick")
    group.addoption("--add", action="store_true", help="keep the result file's rows; only cases that have none there")
    group.addoption("--case", default="", help="only cases with this in their names")
    group.addoption("--only", action="append", default=[], help="a provider to time; default: all")
    group.addoption("--without", action="append", default=[], help="a provider to leave out")
    group.addoption("--seconds", type=float, default=None, help="begin no further case after so long")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    config.stash[ROWS] = results.read(Path(path))[1] if (path := _added_to(config)) else []
    config.stash[BEGIN], config.stash[LEFT_OUT] = time.monotonic(), False


def _added_to(config: pytest.Config) -> str | None:
    """The file with rows to go on with."""
    path = config.getoption("--rows")
    return path if config.getoption("--add") and Path(path).exists() else None


def _chosen(config: pytest.Config) -> list[Case]:
    """The cases that the flags ask for, each with the providers that they leave."""
    names = [name for name in config.getoption("--rooms").split(",") if name]
    device, quick = config.getoption("--on"), config.getoption("--quick")
    only, without = config.getoption("--only"), config.getoption("--without")
    there = {row.key for row in config.stash[ROWS]}
    chosen = []
    for case in (case for name in names for case in registry.cases(name, device, quick)):
        left = {name: one for name, one in case.providers.items() if name not in without and (not only or name in only)}
        if left and config.getoption("--case") in case.name and case.key not in there:
            chosen.append(replace(case, providers=left))
    return chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test per case and provider; those of a case follow one another."""
    if "provider" not in metafunc.fixturenames:
        return
    meter = Meter()
    metafunc.parametrize(
        ("case", "provider", "meter"),
        [
            pytest.param(
                case,
                provider,
                meter,
                id=f"{case}-{provider}",
                marks=pytest.mark.benchmark(group=str(case), timer=meter),
            )
            for case in _chosen(metafunc.config)
            for provider in case.providers
        ],
    )


@pytest.fixture
def measured(request: pytest.FixtureRequest, case: Case) -> dict[str, Samples]:
    """Samples of all providers of the case, taken when its first provider comes."""
    stash, limit = request.config.stash, request.config.getoption("--seconds")
    if CURRENT not in stash or stash[CURRENT][0] is not case:
        if limit is not None and time.monotonic() - stash[BEGIN] > limit:
            stash[LEFT_OUT] = True
            pytest.skip("no time is left")
        found: dict[str, Samples] | NotTimed
        try:
            found = timing.measure(case, QUICK_ROUNDS if request.config.getoption("--quick") else ROUNDS)
        except NotTimed as reason:
            found = reason
        stash[CURRENT] = case, found
    kept = stash[CURRENT][1]
    if isinstance(kept, NotTimed):
        pytest.fail(str(kept), pytrace=False)
    return kept


@pytest.fixture
def keep_row(request: pytest.FixtureRequest) -> Callable[[Case, str, Samples], dict[str, Any]]:
    """Puts a provider's row into the result file, and returns its fields."""

    def keep(case: Case, provider: str, samples: Samples) -> dict[str, Any]:
        rows, path = request.config.stash[ROWS], request.config.getoption("--rows")
        rows.append(results.row(case, provider, samples))
        if path is not None and provider == list(case.providers)[-1]:  # whatever ends the run, whole cases are kept
            results.write(Path(path), rows, results.record(case.device))
        return asdict(rows[-1])

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == 0 and session.config.stash[LEFT_OUT]:
        session.exitstatus = OUT_OF_TIME


def pytest_terminal_summary(config: pytest.Config) -> None:
    """The table, the file, and its figures beside it."""
    if not (rows := config.stash[ROWS]):
        return
    show(rows)
    machine = results.record(config.getoption("--on"))
    named = config.getoption("--rows")
    path = Path(named) if named else None if config.getoption("--quick") else results.path_for(machine)
    if path is not None:
        results.write(path, rows, machine)
        print("wrote", *map(str, [path, *plots.write(path, rows, machine)]))
