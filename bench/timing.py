"""Times the providers of a case side by side: rounds interleave them, so that a slow minute falls on all of them."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hotplate.bench.harness import KEPT, OURS, Case, checked
from hotplate.train.heap import adjustable, keep_freed_memory, return_freed_memory
from hotplate.train.throughput import peak_memory, reset_peak_memory, resident_memory

MIN_ROUNDS = 5  # fewer have no 20th and 80th percentile worth the name
CASE_SECONDS = 20.0  # after this long a case makes do with MIN_ROUNDS
SETTLING_CALLS, SETTLING_SECONDS = 16, 2.0  # at the most, before a provider's timed call
FEW_FAULTS = 32
CACHE_FLUSH_BYTES = 256 << 20  # larger than the last-level cache of any GPU this runs on


@dataclass
class Samples:
    """What one provider took: milliseconds of every round, and the memory of one more call."""

    error: float
    wall: list[float] = field(default_factory=list)  # on a GPU between events, on a cold cache
    busy: list[float] = field(default_factory=list)  # processor time, blind to neighbours; empty on a GPU
    peak_bytes: int | None = None  # above the start of the call: allocated on a GPU, resident on a CPU


class Meter:
    """A clock that moves only by what was measured: pytest-benchmark reads interleaved rounds off it, one by one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, milliseconds: float) -> None:
        self.seconds += 1e-3 * milliseconds


def measure(case: Case, rounds: int) -> dict[str, Samples]:
    """Every provider checked by one call, then timed over at most `rounds` shared rounds, settled each time.

    WrongResult when a provider does not compute what the case asks for: nothing of it is timed.
    """
    inputs, errors = checked(case)
    calls = {name: partial(provider, inputs) for name, provider in case.providers.items()}
    found = {name: Samples(errors[name]) for name in calls}
    flush = torch.empty(CACHE_FLUSH_BYTES if case.device == "cuda" else 0, dtype=torch.uint8, device=case.device)
    settles = case.device == "cpu" and adjustable()
    begin = time.perf_counter()
    for done in range(max(rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and time.perf_counter() - begin > CASE_SECONDS:
            break
        for name, call in calls.items():
            if settles:
                _settle(name, call)
            if case.device == "cuda":
                found[name].wall.append(_time_cuda(call, flush))
            else:
                wall, busy = _time_cpu(call)
                found[name].wall.append(wall)
                found[name].busy.append(busy)
    for name, call in calls.items():
        if settles:
            _settle(name, call)
        found[name].peak_bytes = peak_bytes(call, torch.device(case.device))
    if settles:
        return_freed_memory()
    return found


def _settle(name: str, call: Callable[[], object]) -> None:
    """Sets the C library as the provider wants it, and calls once, or with memory kept until no page is new: a hole
    that an aligned block left does not fit the next one before it has joined another."""
    kept = name in OURS or name.endswith(KEPT)
    if kept:
        keep_freed_memory()
    else:
        return_freed_memory()
    begin = time.perf_counter()
    for _ in range(SETTLING_CALLS if kept else 1):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        if faults <= FEW_FAULTS or time.perf_counter() - begin > SETTLING_SECONDS:
            break


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


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Most memory of one call above its start; None where the system does not say.

    On a CPU that is resident memory, so what the allocator keeps for later is given back to the system first.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    else:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    before = resident_memory(device)
    resets = reset_peak_memory(device)
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    after = peak_memory(device)
    return None if before is None or after is None or not resets else max(0, after - before)
