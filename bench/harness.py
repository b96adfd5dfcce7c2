"""Times several ways of computing one thing, side by side, and refuses to time a wrong one.

A case names the work and its providers; what every provider returns is compared with the truth.
Rounds interleave the providers, so that a slow minute of the machine falls on all of them.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotplate.train.environment import environment

Inputs = Any  # whatever a case prepares; only its own providers look inside
Provider = Callable[[Inputs], Sequence[Tensor]]

MIN_ROUNDS = 5  # fewer have no 20th and 80th percentile worth the name
RATE_TRIES = 15  # the best of them: a neighbour on the machine must not lower the rate
CPU_SIDES, GPU_SIDES = (512, 1024, 2048), (4096, 8192)  # of square products: which is fastest depends on caches
CASE_SECONDS = 20.0  # after this long a case makes do with MIN_ROUNDS
CACHE_FLUSH_BYTES = 256 << 20  # larger than the last-level cache of any GPU this runs on


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

    def __str__(self) -> str:
        return f"{self.bench}[{self.name}-{self.device}-{dtype_name(self.dtype)}]"


@dataclass(frozen=True)
class Row:
    """One provider on one case; None where not measured."""

    bench: str
    case: str
    provider: str
    device: str
    dtype: str
    ms_median: float
    ms_p20: float
    ms_p80: float
    cpu_ms_median: float | None  # processor time of the process, blind to neighbours on the machine
    floor_ms: float | None
    tokens_per_s: float | None
    peak_bytes: int | None  # allocated above the start of the call; CUDA only, torch counts none on a CPU
    max_err: float


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


def _time_cpu(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor milliseconds of one call."""
    wall, busy = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - busy)


def _time_cuda(call: Callable[[], object], flush: Tensor) -> float:
    """Device milliseconds of one call on a cold cache."""
    flush.zero_()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _peak_bytes(call: Callable[[], object], device: str) -> int | None:
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@dataclass(frozen=True)
class Rates:
    """What the device was measured to do: the denominators of every floor."""

    copy_bytes_per_s: float  # read plus written
    matmul_flops_per_s: float


@cache
def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Best of a few copies and square products, with the threads that the cases run with."""
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
        return 2 * side**3 / best_seconds(lambda: left @ right)

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


def measure(case: Case, rounds: int) -> list[Row]:
    """A row per provider: checked and warmed by one call, then timed over at most `rounds` shared rounds."""
    inputs, errors = checked(case)
    calls = {name: partial(provider, inputs) for name, provider in case.providers.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    flush = torch.empty(CACHE_FLUSH_BYTES if case.device == "cuda" else 0, dtype=torch.uint8, device=case.device)
    begin = time.perf_counter()
    for done in range(max(rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and time.perf_counter() - begin > CASE_SECONDS:
            break
        for name, call in calls.items():
            if case.device == "cuda":
                wall[name].append(_time_cuda(call, flush))
            else:
                wall_ms, busy_ms = _time_cpu(call)
                wall[name].append(wall_ms)
                busy[name].append(busy_ms)
    least_ms = floor_ms(case, measured_rates(case.device, case.dtype))
    rows = []
    for name, call in calls.items():
        fifths = statistics.quantiles(wall[name], n=5, method="inclusive")
        median = statistics.median(wall[name])
        rows.append(
            Row(
                bench=case.bench,
                case=case.name,
                provider=name,
                device=case.device,
                dtype=dtype_name(case.dtype),
                ms_median=median,
                ms_p20=fifths[0],
                ms_p80=fifths[3],
                cpu_ms_median=statistics.median(busy[name]) if busy[name] else None,
                floor_ms=least_ms,
                tokens_per_s=None if case.tokens is None else 1e3 * case.tokens / median,
                peak_bytes=_peak_bytes(call, case.device),
                max_err=errors[name],
            )
        )
    return rows


def result_path(folder: Path, record: Mapping[str, object]) -> Path:
    """<folder>/<machine>-<date>.json"""
    words = "".join(c if c.isalnum() else " " for c in str(record["name"])).lower().split()
    return folder / f"{'-'.join(words)}-{str(record['date'])[:10]}.json"


def write_json(path: Path, rows: Iterable[Row], record: Mapping[str, object]) -> None:
    """{"machine": {...}, "rows": [...]}; keys of a row are the fields of Row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"machine": dict(record), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def record(device: str) -> dict[str, object]:
    """The machine, the revision and the rates behind the floors."""
    return {**environment(torch.device(device)), "rates_float32": asdict(measured_rates(device, torch.float32))}
