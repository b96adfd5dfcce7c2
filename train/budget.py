"""The compute budget: what it buys in tokens and steps, and the two meters that say how much of it is spent.

Protocol hours are tokens over the throughput measured before training (Languini Kitchen, section 1.1): only they
decide when a run ends. Paid hours are the wall clock times the accelerators, and `Goodput` says where they went.
"""

import bisect
import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hotplate.train.errors import InputError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PATTERN = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(steps?|tok(?:ens)?|[smhd])")


@dataclass(frozen=True)
class Budget:
    """An amount of compute in one of three units: accelerator seconds, tokens, or steps."""

    unit: Literal["seconds", "tokens", "steps"]
    amount: float

    @staticmethod
    def parse(text: str) -> "Budget":
        """`6h`, `90s`, `20m`, `1d`, `1.2e9tok`, `500steps`. InputError for anything else, or nothing to spend."""
        match = _PATTERN.fullmatch(text.strip())
        amount = float(match[1]) if match else 0.0
        if not match or amount <= 0 or amount == float("inf"):
            raise InputError(f"--budget {text!r}: want a positive amount like 90s, 20m, 6h, 1d, 1.2e9tok or 500steps")
        if match[2].startswith("step"):
            return Budget("steps", amount)
        if match[2].startswith("tok"):
            return Budget("tokens", amount)
        return Budget("seconds", amount * SECONDS[match[2]])


@dataclass(frozen=True)
class Plan:
    """A budget in numbers: fixed when a run starts, stored with it, and never derived twice."""

    steps: int
    tokens_per_step: int
    tokens_per_second: float | None  # per accelerator; None when the budget is not in time and none was given
    grows_after: int | None = None  # updates of the small model, in a run that grows
    grown_tokens_per_second: float | None = None  # of the large one

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    def _cost(self, steps: float) -> float:
        """What `steps` updates cost, in updates of the first model."""
        if self.grows_after is None or steps <= self.grows_after:
            return steps
        dearer = 1.0
        if self.tokens_per_second is not None and self.grown_tokens_per_second is not None:
            dearer = self.tokens_per_second / self.grown_tokens_per_second
        return self.grows_after + (steps - self.grows_after) * dearer

    def spent(self, step: float) -> float:
        """Fraction of the budget that is spent after `step` updates."""
        return self._cost(step) / self._cost(self.steps)

    def step_at(self, fraction: float) -> int:
        """The first step by which `fraction` of the budget is spent."""
        return bisect.bisect_left(range(self.steps), fraction - 1e-9, key=self.spent)

    def hours(self, tokens: int) -> float | None:
        """Protocol hours that the first `tokens` cost."""
        if self.tokens_per_second is None:
            return None
        return self._cost(tokens / self.tokens_per_step) * self.tokens_per_step / self.tokens_per_second / 3600


@dataclass(frozen=True)
class Growing:
    """The part of a plan that grows: after which fraction of the budget, and the large model's tokens/s."""

    at: float
    tokens_per_second: float | None


def make_plan(
    budget: Budget, tokens_per_step: int, tokens_per_second: float | None, growing: Growing | None = None
) -> Plan:
    """Tokens = throughput * seconds; steps = round(tokens / tokens per step), as the published step counts are.

    InputError when the budget does not buy one step (of each part), or is in time and no throughput is known.
    """
    if growing is None:
        steps = _bought(budget, tokens_per_step, tokens_per_second, 1.0)
        return Plan(steps, tokens_per_step, tokens_per_second)
    first = _bought(budget, tokens_per_step, tokens_per_second, growing.at)
    rest = _bought(budget, tokens_per_step, growing.tokens_per_second, 1.0 - growing.at)
    return Plan(first + rest, tokens_per_step, tokens_per_second, first, growing.tokens_per_second)


def _bought(budget: Budget, tokens_per_step: int, tokens_per_second: float | None, share: float) -> int:
    """Steps that `share` of the budget buys."""
    if budget.unit == "steps":
        steps = round(budget.amount * share)
    else:
        if budget.unit == "seconds" and not tokens_per_second:
            raise InputError("--budget in hours needs a throughput: give --tokens-per-second or let it be measured")
        tokens = budget.amount if budget.unit == "tokens" else (tokens_per_second or 0.0) * budget.amount
        steps = round(tokens * share / tokens_per_step)
    if steps < 1:
        raise InputError(
            f"--budget: {budget.amount * share:g} {budget.unit} buy less than one step of {tokens_per_step} tokens"
            f" at {tokens_per_second} tokens/s; raise the budget or lower --batch"
        )
    return steps


@dataclass
class Goodput:
    """Paid seconds by what they bought. Monotonic clock; carried over resumes, so nothing is counted twice.

    A thread may read while another switches.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    down: float = 0.0  # seconds between the end of one process and the start of the next: nobody computed
    _phase: str = "start-up"
    _since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def of_process(cls) -> "Goodput":
        """A meter whose start-up began with this process: what importing took is paid, too."""
        return cls(_since=time.monotonic() - process_seconds())

    @property
    def phase(self) -> tuple[str, float]:
        """What the clock runs for, and since when."""
        with self._lock:
            return self._phase, self._since

    def add(self, earlier: Mapping[str, float]) -> None:
        """Count what a run paid before it was resumed."""
        with self._lock:
            for phase, seconds in earlier.items():
                self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def switch(self, phase: str) -> None:
        """From now on the clock runs for `phase`."""
        with self._lock:
            now = time.monotonic()
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
            self._phase, self._since = phase, now

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """The clock runs for `phase` inside the block, then for what it was before."""
        before = self.phase[0]
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    @property
    def paid(self) -> float:
        """All seconds so far."""
        return sum(self.snapshot().values())

    def snapshot(self) -> dict[str, float]:
        """Seconds by phase up to now."""
        with self._lock:
            running = time.monotonic() - self._since
            return {**self.seconds, self._phase: self.seconds.get(self._phase, 0.0) + running}


def process_seconds() -> float:
    """The age of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
