"""One fault: how it is brought about, what is promised, and the function that tries it and reports what happened."""

from collections.abc import Callable
from dataclasses import dataclass

from hotplate.bench.faults.arena import Arena


@dataclass(frozen=True)
class Scenario:
    """`trial` does it `times` times (`quick` in CI; 0: not there) and returns what happened, or raises Broken."""

    name: str  # R1, R2, ...
    fault: str
    injected: str
    promised: str
    trial: Callable[[Arena, int], str]
    times: int = 1
    quick: int = 0
    needs: str = ""  # "cuda" or "two cuda devices", where it cannot run on a CPU


@dataclass(frozen=True)
class Outcome:
    """A scenario's row of the result file."""

    name: str
    fault: str
    injected: str
    promised: str
    times: int
    happened: str
    kept: bool | None  # whether the promise was; None: not run here, `happened` says why
    seconds: float
