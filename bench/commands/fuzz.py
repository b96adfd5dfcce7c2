"""`hotplate fuzz`: millions of damaged files into every parser of ours; a crash or a hang is a defect."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from hotplate.bench.fuzz.loop import fuzz
from hotplate.bench.fuzz.targets import targets
from hotplate.train import settings
from hotplate.train.console import say, table
from hotplate.train.environment import environment
from hotplate.train.errors import InputError


@dataclass(frozen=True)
class Options:
    """Damage files that parsers accept and see that they refuse them with one message."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """parsers; none: all of them"""
    inputs: int = 200_000
    """per parser"""
    seed: int = 1
    """of the mutations"""
    json: Path | None = None
    """where the figures go"""


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when a parser did anything but accept or refuse."""
    options = settings.parse(Options(), arguments, "hotplate fuzz")
    with targets() as known:
        if unknown := sorted(set(options.names) - set(known)):
            raise InputError(f"fuzz: no parser called {', '.join(unknown)}; known: {', '.join(known)}")
        found = []
        for name in options.names or known:
            found.append(fuzz(known[name], options.inputs, options.seed))
            say(f"{name}: {found[-1].inputs:,} inputs, {found[-1].accepted:,} accepted, {found[-1].seconds:.0f} s")
            for where, content in found[-1].defects.items():
                say(f"  DEFECT {where}\n  input {content[:200]}")
    rows = [[f.target, f"{f.inputs:,}", f"{f.accepted:,}", f"{f.slowest_ms:.1f}", str(len(f.defects))] for f in found]
    table("damaged files", ["parser", "inputs", "accepted", "slowest ms", "defects"], rows)
    if options.json:
        body = {
            "machine": environment(torch.device("cpu")),
            "seed": options.seed,
            "parsers": [asdict(f) for f in found],
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0 if all(f.clean for f in found) else 1
