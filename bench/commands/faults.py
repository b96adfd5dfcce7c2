"""`hotplate faults`: brings about every fault of the catalogue, and says whether what is promised was kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from hotplate.bench.faults import catalogue
from hotplate.train import settings
from hotplate.train.console import say
from hotplate.train.environment import environment


@dataclass(frozen=True)
class Options:
    """Kill, starve, freeze and mislead real training processes."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """R1, R2, ...; none: all of them"""
    quick: bool = False
    """few times each, and only what takes seconds"""
    json: Path | None = None
    """where the outcomes go"""
    page: bool = False
    """instead, write the tables of docs/reliability.md from the newest result files"""
    check: bool = False
    """with --page: write nothing; exit with 1 when the tables are not those of the result files"""


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when a promise was broken."""
    options = settings.parse(Options(), arguments, "hotplate faults")
    if options.page:
        return _page(options.check)
    outcomes = []
    with catalogue.arena() as place:
        for scenario in catalogue.chosen(options.names):
            times = scenario.quick if options.quick else scenario.times
            if times:
                outcome = catalogue.tried(scenario, place, times)
                outcomes.append(outcome)
                state = {True: "kept", False: "BROKEN", None: "-"}[outcome.kept]
                say(f"{outcome.name} {state} ({outcome.seconds:.0f} s) {outcome.fault}: {outcome.happened}")
    if options.json:
        catalogue.write(options.json, outcomes, environment(torch.device("cpu")))
    broken = [outcome.name for outcome in outcomes if outcome.kept is False]
    say(f"{len(outcomes)} faults, {len(broken)} promises broken {' '.join(broken)}")
    return int(bool(broken))


def _page(check: bool) -> int:
    text = catalogue.PAGE.read_text(encoding="utf-8")
    made = catalogue.rewritten(text, catalogue.section())
    if check:
        say(f"{catalogue.PAGE}: {'as the result files say' if made == text else 'stale: run hotplate faults --page'}")
        return int(made != text)
    catalogue.PAGE.write_text(made, encoding="utf-8")
    return 0
