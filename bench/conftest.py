"""Flags, cases and the result file of the benchmarks under pytest: see test_cases.py."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from hotplate.bench import plots, registry, results, timing
from hotplate.bench.harness import Case, NotTimed
from hotplate.bench.table import show
from hotplate.bench.timing import Meter, Samples

ROUNDS, QUICK_ROUNDS = 15, 5
ROWS = pytest.StashKey[list[results.Row]]()
CURRENT = pytest.StashKey[tuple[Case, dict[str, Samples] | NotTimed]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hotplate")
    group.addoption("--rooms", default=",".join(registry.names()), help="benchmarks to run, by commas; default: all")
    group.addoption("--on", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption("--quick", action="store_true", help="small shapes, few rounds: shows that everything runs")
    group.addoption("--threads", type=int, default=1, help="CPU threads; with 1, wall and processor time compare")
    group.addoption("--rows", default=None, help="result file; default: results/MACHINE-DATE, none when quick")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("--threads"))
    config.stash[ROWS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test per case and provider; those of a case follow one another."""
    if "provider" not in metafunc.fixturenames:
        return
    names = [name for name in metafunc.config.getoption("--rooms").split(",") if name]
    device, quick = metafunc.config.getoption("--on"), metafunc.config.getoption("--quick")
    cases = [case for name in names for case in registry.cases(name, device, quick)]
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
            for case in cases
            for provider in case.providers
        ],
    )


@pytest.fixture
def measured(request: pytest.FixtureRequest, case: Case) -> dict[str, Samples]:
    """Samples of all providers of the case, taken when its first provider comes."""
    stash = request.config.stash
    if CURRENT not in stash or stash[CURRENT][0] is not case:
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
        request.config.stash[ROWS].append(results.row(case, provider, samples))
        return asdict(request.config.stash[ROWS][-1])

    return keep


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
