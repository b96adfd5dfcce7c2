"""Times the providers of a case side by side: rounds interleave them, so that a slow minute falls on all of them.

On a GPU they share a process. On CPUs each has its own, as it would where its users run it: in a common one some pay
for the state in which others leave the heap, and some are served by it.
"""

import ctypes
import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hotplate.bench import apart
from hotplate.bench.harness import KEPT, OURS, Case, NotTimed, checked, error, tolerable
from hotplate.train.heap import keep_freed_memory
from hotplate.train.throughput import peak_memory, reset_peak_memory, resident_memory

MIN_ROUNDS = 5  # fewer have no 20th and 80th percentile worth the name
CASE_SECONDS = 20.0  # after this long a case makes do with MIN_ROUNDS
SETTLING_CALLS, SETTLING_SECONDS = 16, 10.0  # at the most, until memory that is kept fits a call
FEW_FAULTS = 32
CACHE_FLUSH_BYTES = 256 << 20  # larger than the last-level cache of any GPU this runs on
# The lead that the host gets before a kernel's call is timed, in multiples of the time it needs, and at the most.
LEAD, MOST_LEAD_MS = 2.0, 50.0
CYCLES_PER_MS = 2_000_000  # of a GPU at 2 GHz: at lower clocks the lead is longer


@dataclass
class Samples:
    """What one provider took: milliseconds of every round, and the memory of one more call."""

    error: float
    wall: list[float] = field(default_factory=list)  # on a GPU between events, on a cold cache
    busy: list[float] = field(default_factory=list)  # processor time, blind to neighbours; empty on a GPU
    host_ms: float | None = None  # what a call takes until all is asked of a GPU; None on a CPU
    peak_bytes: int | None = None  # above the start of the call: allocated on a GPU, resident on a CPU


class Meter:
    """A clock that moves only by what was measured: pytest-benchmark reads interleaved rounds off it, one by one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, milliseconds: float) -> None:
        self.seconds += 1e-3 * milliseconds


@dataclass(frozen=True)
class Turns:
    """What each provider does when its turn comes, by its name; all are right."""

    errors: Mapping[str, float]
    host_ms: Mapping[str, float]  # of a GPU's calls
    time: Callable[[str], tuple[float, float | None]]  # wall and processor milliseconds of one call
    peak: Callable[[str], int | None]  # bytes


def measure(case: Case, rounds: int) -> dict[str, Samples]:
    """Every provider checked by one call, then timed over at most `rounds` shared rounds.

    NotTimed when a provider does not compute what the case asks for, or ends: nothing is timed.
    """
    try:
        return _measured(case, rounds)
    except apart.Ended as reason:
        raise NotTimed(str(reason)) from None


def _measured(case: Case, rounds: int) -> dict[str, Samples]:
    with (_apart if case.device == "cpu" else _together)(case) as turns:
        found = {name: Samples(off, host_ms=turns.host_ms.get(name)) for name, off in turns.errors.items()}
        begin = time.perf_counter()
        for done in range(max(rounds, MIN_ROUNDS)):
            if done >= MIN_ROUNDS and time.perf_counter() - begin > CASE_SECONDS:
                break
            for name, samples in found.items():
                wall, busy = turns.time(name)
                samples.wall.append(wall)
                samples.busy += [] if busy is None else [busy]
        for name, samples in found.items():
            samples.peak_bytes = turns.peak(name)
    return found


@contextmanager
def _together(case: Case) -> Iterator[Turns]:
    """In this process, on a GPU."""
    inputs, errors = checked(case)
    flush = torch.empty(CACHE_FLUSH_BYTES, dtype=torch.uint8, device=case.device)
    calls = {name: partial(provider, inputs) for name, provider in case.providers.items()}
    device = torch.device(case.device)
    host_ms = {name: _host_ms(call) for name, call in calls.items()}

    def time_of(name: str) -> tuple[float, None]:
        lead_ms = 0.0 if case.whole else min(LEAD * host_ms[name], MOST_LEAD_MS)
        return _time_cuda(calls[name], flush, lead_ms), None

    yield Turns(errors, host_ms, time_of, lambda name: peak_bytes(calls[name], device))


@contextmanager
def _apart(case: Case) -> Iterator[Turns]:
    """A process for each, and one for the truth, which ends before anything is timed."""
    with ExitStack() as ends:
        seats = {
            name: ends.enter_context(apart.start(f"{case}: {name}", partial(_seat, case, name)))
            for name in case.providers
        }
        with apart.start(f"{case}: the truth", partial(_judge, case)) as judge:
            errors = {name: judge.ask(seat.ask("results")) for name, seat in seats.items()}
        yield Turns(
            tolerable(case, errors), {}, lambda name: seats[name].ask("time"), lambda name: seats[name].ask("peak")
        )


def _judge(case: Case) -> Callable[[bytes], float]:
    torch.manual_seed(0)
    truth = case.truth(case.prepare())

    def judged(packed: bytes) -> float:
        results = load(packed)
        return error([results[str(n)] for n in range(len(results))], truth)

    return judged


def _seat(case: Case, name: str) -> Callable[[str], Any]:
    """The provider, with the C library set as it wants it; each timed call follows one that is not."""
    kept = name in OURS or name.endswith(KEPT)
    if kept:
        keep_freed_memory()
    torch.manual_seed(0)  # what every process prepares must be the same
    call = partial(case.providers[name], case.prepare())

    def answer(question: str) -> Any:
        if question == "peak":
            return peak_bytes(call, torch.device(case.device))
        if question == "time":
            call()
            return _time_cpu(call)
        results = [x.detach().clone(memory_format=torch.contiguous_format) for x in call()]
        packed = save({str(n): x for n, x in enumerate(results)})
        if kept:
            _settle(call)
        return packed

    return answer


def _settle(call: Callable[[], object]) -> None:
    """Calls until no page is new: a hole that an aligned block left does not fit the next one before it has joined
    another."""
    begin = time.perf_counter()
    for _ in range(SETTLING_CALLS):
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


def _host_ms(call: Callable[[], object]) -> float:
    """Milliseconds until a call has asked all it wants of an idle GPU."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    taken = 1e3 * (time.perf_counter() - begin)
    torch.cuda.synchronize()
    return taken


def _time_cuda(call: Callable[[], object], flush: Tensor, lead_ms: float) -> float:
    """Device milliseconds of one call on a cold cache. The device is kept busy for about `lead_ms` before: an operation
    of some launches takes the host longer than the device, which in training works off what was asked for earlier."""
    flush.zero_()
    if lead_ms:
        torch.cuda._sleep(int(lead_ms * CYCLES_PER_MS))
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
