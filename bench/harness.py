"""What a benchmark is: the work of a case, its providers and their truth, and the floor that no provider can beat.

What every provider returns is compared with the truth; nothing of a case with a wrong provider is timed (timing.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotplate.bench.rates import Rates
from hotplate.kernels.launch import IMPLS

Inputs = Any  # whatever a case prepares; only its own providers look inside
Provider = Callable[[Inputs], Sequence[Tensor]]

# Providers that are this package's, by their names: they run as its trainer does, which keeps freed memory on a CPU
# (train/heap.py). All others run as they are installed; or, where their names end with KEPT, with memory kept too.
COMPILED = "hotplate, compiled"
OURS = frozenset({"hotplate", COMPILED, "by row", *IMPLS})
KEPT = ", memory kept"


class NotTimed(RuntimeError):
    """A provider does not compute what the case asks for, or ends: nothing of the case is timed."""


@dataclass(frozen=True)
class Case:
    """One shape of one benchmark. Only `prepare` allocates, so that a list of cases costs nothing."""

    bench: str
    name: str
    device: str
    dtype: torch.dtype
    prepare: Callable[[], Inputs]
    truth: Provider  # float64 results
    providers: Mapping[str, Provider]  # results in the order of truth; the first is what others are compared with
    tolerance: float  # largest |result - truth| / |truth| (Frobenius) of a right provider at this dtype
    tokens: int | None = None  # what tokens_per_s counts
    moved_bytes: int | None = None  # the least that must cross memory: operands once, results once
    flops: int | None = None
    whole: bool = False  # a step as a trainer runs it: where a GPU waits for the host, that counts

    @property
    def key(self) -> tuple[str, str, str]:
        """What rows of results have, too."""
        return self.bench, self.name, dtype_name(self.dtype)

    def __str__(self) -> str:
        return f"{self.bench}[{self.name}-{self.device}-{dtype_name(self.dtype)}]"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative Frobenius error over the results; infinite where one is missing or not finite."""
    if len(results) != len(truth) or any(r.shape != t.shape for r, t in zip(results, truth, strict=False)):
        return float("inf")
    worst = 0.0
    for result, true in zip(results, truth, strict=True):
        scale = true.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
        share = ((result.detach().double() - true.double()).norm() / scale).item()
        worst = max(worst, share if share == share else float("inf"))
    return worst


def tolerable(case: Case, errors: Mapping[str, float]) -> dict[str, float]:
    """Every provider's error; NotTimed if one is beyond the tolerance."""
    wrong = {name: e for name, e in errors.items() if not e <= case.tolerance}
    if wrong:
        facts = ", ".join(f"{name} {e:.2g}" for name, e in wrong.items())
        raise NotTimed(f"{case}: error above {case.tolerance:.2g}: {facts}; not timed")
    return dict(errors)


def checked(case: Case) -> tuple[Inputs, dict[str, float]]:
    """The case's inputs and every provider's error, all in this process; NotTimed if one is beyond the tolerance."""
    inputs = case.prepare()
    truth = case.truth(inputs)
    return inputs, tolerable(case, {name: error(provider(inputs), truth) for name, provider in case.providers.items()})


def floor_ms(case: Case, rates: Rates) -> float | None:
    """The time no provider can beat: memory traffic or arithmetic at the measured rates."""
    floors = []
    if case.moved_bytes is not None:
        floors.append(case.moved_bytes / rates.bytes_per_s)
    if case.flops is not None:
        floors.append(case.flops / rates.matmul_flops_per_s)
    return 1e3 * max(floors) if floors else None
