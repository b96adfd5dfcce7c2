"""Calls of the device check and of benchmarks on the stand-in GPU, see rehearse.py."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hotplate.bench import device_cases, device_check, registry
from hotplate.bench.harness import COMPILED, Case
from hotplate.bench.stand_in import device, launchers, steps
from hotplate.bench.step import Shape, shapes
from hotplate.kernels.newton_schulz import newton_schulz

OURS = ("triton", "hotplate")  # providers that launch kernels of ours
CHECK = "check-"
TWICE = 2  # a call may register operators, whose real bodies the next one runs
WHY = 400  # characters of an error


@dataclass
class Found:
    """Of one part."""

    calls: int = 0
    launches: int = 0
    kernels: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)  # by call

    def launched(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.launches += 1
        self.kernels.add(name)


Call = tuple[str, Callable[[], object]]


def run(part: str, quick: bool) -> Found:
    """Every call of a part; one that fails does not keep the others from running."""
    found = Found()
    device.listeners.append(found.launched)
    if launchers.apart() and not device.loaders:
        launchers.prepare_driver()
        device.loaders.append(launchers.prepare)
    with nullcontext() if part == registry.STEP else FakeTensorMode():
        for label, call in calls(part, quick):
            found.calls += 1
            try:
                for _ in range(TWICE):
                    device.real_bodies(nullcontext)
                    call()
            except Exception as error:  # whatever it is, it would have cost time on a GPU
                found.failures[label] = f"{type(error).__name__}: {error}"[:WHY]
    device.listeners.remove(found.launched)
    return found


def calls(part: str, quick: bool) -> Iterator[Call]:
    if part.startswith(CHECK):
        yield from _checks(getattr(torch, part.removeprefix(CHECK)), quick)
    elif part == registry.STEP:
        yield from _steps(quick)
    else:
        yield from _cases(part, quick)


def _checks(dtype: torch.dtype, quick: bool) -> Iterator[Call]:
    for case in device_cases.cases(quick, dtype, "cuda"):
        yield case.label, partial(device_check.results, case, case.leaves, "triton")
    for shape in device_check.matrices(quick):
        yield f"newton_schulz {shape}", partial(_orthogonal, shape, dtype)


def _orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    newton_schulz(torch.randn(shape, device="cuda").to(dtype), impl="triton")


def _cases(name: str, quick: bool) -> Iterator[Call]:
    for case in registry.cases(name, "cuda", quick):
        for provider in (one for one in case.providers if one in OURS):
            yield f"{case} {provider}", partial(_call, case, provider)


def _call(case: Case, provider: str) -> None:
    case.providers[provider](case.prepare())


def _steps(quick: bool) -> Iterator[Call]:
    """Whole models; each has its own mode."""
    for shape in shapes("cuda", quick):
        for how in ("hotplate",) if quick else ("hotplate", COMPILED):
            yield f"{shape.name}, {how}", partial(_step, shape, how == COMPILED)


def _step(shape: Shape, compiled: bool) -> None:
    torch.compiler.reset()
    steps.step_of(shape.config, compiled, shape.B, shape.T, carried=False)()
