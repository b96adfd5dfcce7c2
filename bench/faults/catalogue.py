"""All faults, the trial of each, and the page that tells what came of them."""

import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hotplate.bench import results
from hotplate.bench.faults.arena import Arena, Broken
from hotplate.bench.faults.nursery import Nursery
from hotplate.bench.faults.scenario import Outcome, Scenario
from hotplate.train.errors import InputError
from hotplate.train.untrusted import read_object

MODULES = ("kills", "launched", "disks", "signals", "numbers", "execution", "inputs", "saves", "devices")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by `hotplate faults --page` -->", "<!-- end of what is made -->"
KINDS = ("faults", "soak", "fuzz")  # of result files: KIND-MACHINE-DATE.json


def scenarios() -> list[Scenario]:
    """In the order of their names."""
    found: list[Scenario] = []
    for name in MODULES:
        found += importlib.import_module(f"hotplate.bench.faults.{name}").SCENARIOS
    return sorted(found, key=lambda scenario: int(scenario.name.removeprefix("R")))


@contextmanager
def arena(folder: Path | None = None) -> Iterator[Arena]:
    """A place for trials; a temporary one when no folder is given."""
    with tempfile.TemporaryDirectory(prefix="hotplate-faults-", ignore_cleanup_errors=True) as made:
        place = folder or Path(made)
        with Nursery(place / "output") as nursery:
            yield Arena(place, nursery)


def why_not(scenario: Scenario) -> str | None:
    """Why it cannot be tried here; None where it can."""
    devices = torch.cuda.device_count()
    if scenario.needs == "cuda" and devices < 1:
        return "not tried: needs a CUDA device"
    if scenario.needs == "two cuda devices" and devices < 2:
        return "not tried: needs two CUDA devices"
    return None


def tried(scenario: Scenario, place: Arena, times: int) -> Outcome:
    """What happened; a broken promise is an outcome, too."""
    facts = (scenario.name, scenario.fault, scenario.injected, scenario.promised)
    if (why := why_not(scenario)) is not None:
        return Outcome(*facts, 0, why, None, 0.0)
    began = time.monotonic()
    try:
        happened, kept = scenario.trial(place, times), True
    except (Broken, RuntimeError, TimeoutError, PermissionError) as error:
        happened, kept = f"{type(error).__name__}: {error}", False
    return Outcome(*facts, times, happened, kept, round(time.monotonic() - began, 1))


def write(path: Path, outcomes: Iterable[Outcome], machine: Mapping[str, object]) -> None:
    body = {"machine": dict(machine), "faults": [asdict(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def newest(kind: str, folder: Path = results.FOLDER) -> tuple[Path, dict[str, Any]] | None:
    """The latest result file of a kind. InputError when it is damaged."""
    found = sorted(folder.glob(f"{kind}-*.json"), key=lambda path: path.name[-15:])
    return (found[-1], read_object(found[-1], "a result", f"restore it: git checkout {found[-1]}")) if found else None


def section(folder: Path = results.FOLDER) -> str:
    """The tables of the page, marks included."""
    makers: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
        "faults": _fault_table,
        "soak": _soak_lines,
        "fuzz": _fuzz_table,
    }
    lines = [BEGIN]
    for kind in KINDS:
        if (found := newest(kind, folder)) is not None:
            lines += ["", *makers[kind](*found)]
    return "\n".join([*lines, "", END])


def _where(path: Path, body: Mapping[str, Any], command: str) -> str:
    machine = body["machine"]
    commit = f", commit {machine['revision'][:10]}" if machine.get("revision") else ""
    return (
        f"{machine['name']}, {machine['cores']} cores, {str(machine['date'])[:10]}{commit}; `{command}`, "
        f"[{path.name}](../bench/results/{path.name})"
    )


def _fault_table(path: Path, body: dict[str, Any]) -> list[str]:
    lines = [
        "## Faults",
        "",
        f"On {_where(path, body, 'hotplate faults --json FILE')}.",
        "",
        "| | fault | injected | times | promised | happened |",
        "| --- | --- | --- | ---: | --- | --- |",
    ]
    for row in body["faults"]:
        mark = "" if row["kept"] else "**broken**: " if row["kept"] is False else ""
        cells = (row["name"], row["fault"], row["injected"], str(row["times"]), row["promised"], mark + row["happened"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return lines


def _soak_lines(path: Path, body: dict[str, Any]) -> list[str]:
    soak = body["soak"]
    paid, total = soak["paid_seconds"], sum(soak["paid_seconds"].values())
    spent = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in sorted(paid.items(), key=lambda item: -item[1]))
    command = f"hotplate soak --cycles {soak['cycles']} --steps {soak['steps']} --json FILE"
    same = "bit-identical" if soak["bit_identical"] else "NOT bit-identical"
    return [
        "## Soak",
        "",
        f"On {_where(path, body, command)}:",
        f"one run of {soak['steps']:,} updates, killed with SIGKILL {soak['cycles']:,} times at random moments and",
        f"resumed as before; {soak['killed_before_the_first_report']:,} kills came before its process's first",
        "report. The last checkpoint's weights,",
        f"moments, carried state and generators are {same} to those of the uninterrupted run, and so are all",
        f"{soak['losses_compared']:,} logged losses. The token meter says {soak['tokens']:,}, wanted are "
        f"{soak['tokens_wanted']:,}. Of {total:,.0f} paid seconds: {spent};",
        f"{soak['down_seconds']:,.0f} more passed between processes and are not paid.",
    ]


def _fuzz_table(path: Path, body: dict[str, Any]) -> list[str]:
    parsers = body["parsers"]
    command = f"hotplate fuzz --inputs {max(p['inputs'] for p in parsers)} --seed {body['seed']} --json FILE"
    lines = [
        "## Damaged files",
        "",
        f"On {_where(path, body, command)}: {sum(p['inputs'] for p in parsers):,} mutations, "
        f"{sum(len(p['defects']) for p in parsers)} crashes or hangs.",
        "",
        "| parser | inputs | accepted | slowest, ms | crashes or hangs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for parser in parsers:
        facts = (
            f"{parser['inputs']:,}",
            f"{parser['accepted']:,}",
            f"{parser['slowest_ms']:.1f}",
            len(parser["defects"]),
        )
        lines.append(f"| {parser['target']} | " + " | ".join(map(str, facts)) + " |")
    return lines


def rewritten(text: str, made: str) -> str:
    """`text` with the section between the marks replaced. InputError when it lacks them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{PAGE}: wants the marks {BEGIN} and {END} around the tables")
    return before + made + after


def chosen(names: Sequence[str]) -> list[Scenario]:
    """All scenarios, or those of the names. InputError for an unknown one."""
    known = scenarios()
    if unknown := sorted(set(names) - {scenario.name for scenario in known}):
        raise InputError(f"faults: no {', '.join(unknown)}; known: {', '.join(dict.fromkeys(s.name for s in known))}")
    return [scenario for scenario in known if not names or scenario.name in names]
