"""`hotplate soak`: one run, killed with SIGKILL at random moments and resumed, a thousand times."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hotplate.bench.faults import catalogue
from hotplate.bench.faults.kills import soak
from hotplate.train import settings
from hotplate.train.console import say
from hotplate.train.environment import environment


@dataclass(frozen=True)
class Options:
    """Kill and resume one run; its end must be that of an uninterrupted one, bit for bit."""

    cycles: int = 1000
    """kills"""
    steps: int = 24_000
    """updates of the whole run"""
    longest: float = 1.2
    """seconds from a process's start to its death are drawn from 0 to this"""
    json: Path | None = None
    """where the figures go"""


def main(arguments: Sequence[str]) -> int:
    """Exit code 1, by an exception, when a promise was broken."""
    options = settings.parse(Options(), arguments, "hotplate soak")
    with catalogue.arena() as place:
        found = soak(place, options.cycles, options.steps, options.longest, say)
    say(json.dumps(found, indent=1))
    if options.json:
        body = {"machine": environment(torch.device("cpu")), "soak": found}
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0
