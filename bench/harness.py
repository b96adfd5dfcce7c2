"""What a benchmark is: the work of a case, its providers and their truth, and the floor that no provider can beat.

What every provider returns is compared with the truth; nothing of a case with a wrong provider is timed (timing.py).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.product import multiply

Inputs = Any  # whatever a case prepares; only its own providers look inside
Provider = Callable[[Inputs], Sequence[Tensor]]

RATE_TRIES = 15  # the best of them: a neighbour on the machine must not lower the rate
CPU_SIDES, GPU_SIDES = (512, 1024, 2048), (4096, 8192)  # of square products: which is fastest depends on caches


class WrongResult(RuntimeError):
    """A provider does not compute what the case asks for: nothing of the case is timed."""


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
    settle: Callable[[str], None] | None = None  # makes the process what the named provider runs in; then it is warmed

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


def checked(case: Case) -> tuple[Inputs, dict[str, float]]:
    """The case's inputs and every provider's error; WrongResult if one is beyond the tolerance."""
    inputs = case.prepare()
    truth = case.truth(inputs)
    errors = {name: error(provider(inputs), truth) for name, provider in case.providers.items()}
    wrong = {name: e for name, e in errors.items() if not e <= case.tolerance}
    if wrong:
        facts = ", ".join(f"{name} {e:.2g}" for name, e in wrong.items())
        raise WrongResult(f"{case}: error above {case.tolerance:.2g}: {facts}; not timed")
    return inputs, errors


@dataclass(frozen=True)
class Rates:
    """What the device was measured to do: the denominators of every floor."""

    copy_bytes_per_s: float  # read plus written
    matmul_flops_per_s: float


@cache
def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Best of a few copies and square products by the fastest form there is, with the cases' threads."""
    large = device == "cuda"
    source = torch.empty((1 << 30) if large else (64 << 20), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)

    def best_seconds(call: Callable[[], object]) -> float:
        times = []
        for _ in range(RATE_TRIES):
            if large:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            if large:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times)

    def product_rate(side: int) -> float:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        forms = (lambda: torch.mm(left, right, out=out), lambda: multiply(left, right, out))
        return 2 * side**3 / min(map(best_seconds, forms))

    copy_s = best_seconds(lambda: target.copy_(source))
    return Rates(2 * source.numel() / copy_s, max(map(product_rate, GPU_SIDES if large else CPU_SIDES)))


def floor_ms(case: Case, rates: Rates) -> float | None:
    """The time no provider can beat: memory traffic at copy speed or arithmetic at matmul speed."""
    floors = []
    if case.moved_bytes is not None:
        floors.append(case.moved_bytes / rates.copy_bytes_per_s)
    if case.flops is not None:
        floors.append(case.flops / rates.matmul_flops_per_s)
    return 1e3 * max(floors) if floors else None
