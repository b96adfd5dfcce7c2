"""`hotplate bench diff A.json B.json`: what became slower from A to B, and by how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hotplate.bench import diff
from hotplate.bench.diff import Change
from hotplate.train import console, settings
from hotplate.train.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Two result files of `hotplate bench` row by row, or two profiles (operations.json) operation by operation."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """before and after"""
    rows: int = 30
    """lines that changed most"""
    noise: bool = False
    """show also rows whose p20..p80 overlap"""


def main(arguments: Sequence[str]) -> int:
    config = settings.parse(DiffConfig(), arguments, "hotplate bench diff")
    if len(config.files) != 2:
        raise InputError(f"bench diff: want two files, got {len(config.files)}: hotplate bench diff A.json B.json")
    before, after = config.files
    found = diff.changes(before, after)
    shown = [change for change in found if config.noise or not change.noisy]
    shown = sorted(sorted(shown, key=lambda change: -abs(change.added))[: config.rows], key=lambda c: -c.added)
    console.table(
        f"{before.name} -> {after.name}; {sum(change.noisy for change in found)} of {len(found)} within their noise",
        ["row or operation", "before ms", "after ms", "added ms", "ratio"],
        [_cells(change) for change in shown],
    )
    console.say(verdict(found))
    return 0


def _cells(change: Change) -> list[str]:
    times = ["absent" if t is None else f"{t:.3g}" for t in (change.before, change.after)]
    ratio = "" if change.ratio is None else f"{change.ratio:.2f}"
    return [change.name + (" (noise)" if change.noisy else ""), *times, f"{change.added:+.3g}", ratio]


def verdict(found: Sequence[Change]) -> str:
    """The largest addition in words."""
    worse = [change for change in found if not change.noisy and change.added > 0]
    if not worse:
        return "nothing became slower beyond its noise"
    total, first = sum(change.added for change in worse), worse[0]
    return f"{len(worse)} became slower, {total:.3g} ms in all; most of it: {first.name}, {first.added:+.3g} ms"
