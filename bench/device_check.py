"""Every recurrent kernel on the device itself against its float64 definition: fresh random inputs, poisoned buffers.

`python -m hotplate.bench.device_check --device cuda --impl triton`. Prints a line per case and exits with 1 when one is
outside its bound. Bounds are relative Frobenius errors: rounding of the inputs' dtype, twice over.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from hotplate.bench.harness import dtype_name, error
from hotplate.kernels.lstm import lstm
from hotplate.kernels.lstm_dense import lstm_dense
from hotplate.kernels.lstm_diagonal import lstm_diagonal
from hotplate.kernels.qlstm import qlstm

BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 1.5e-2}
Op = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Options:
    """Check recurrent kernels on a device."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda"""
    impl: str = "triton" if torch.cuda.is_available() else "native"
    """implementation to check"""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """dtypes of gates and outputs"""
    quick: bool = False
    """small shapes only"""


@dataclass(frozen=True)
class Check:
    """An operation, its gates' shape after [B, T], its recurrent weight's and its states' shapes."""

    name: str
    op: Op
    gates: tuple[int, ...]
    recurrent: tuple[int, ...] | None
    states: int  # leading states in the result's tail: c, or h and c
    options: tuple[tuple[str, object], ...] = ()


def checks(quick: bool) -> Iterator[tuple[Check, int, int]]:
    """(check, B, T) over widths that are round, odd and past a tile, and rows one past a tile."""
    sizes = [(3, 17)] if quick else [(3, 17), (17, 130), (33, 1024)]
    for B, T in sizes:
        for D in (40, 256) if quick else (40, 256, 768):
            yield Check("qlstm", qlstm, (4, D), None, 1, (("forget_offset", 1.0),)), B, T
            yield Check("qlstm coupled", qlstm, (3, D), None, 1, (("coupled", True),)), B, T
            yield Check("lstm_diagonal", lstm_diagonal, (4, D), (4, D), 2), B, T
        for heads, width in [(3, 16), (2, 64)] if quick else [(3, 16), (5, 32), (12, 64)]:
            yield Check("lstm", lstm, (4, heads, width), (4, heads, width, width), 2), B, T
            yield Check("lstm shared", lstm, (4, heads, width), (4, 1, width, width), 2), B, T
        for D in (64,) if quick else (96, 256, 768):
            yield Check("lstm_dense", lstm_dense, (4, D), (4, D, D), 2), B, T


def inputs(check: Check, B: int, T: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """Gates, recurrent weight, states (fp32), all with gradients; and resets with neighbours, first and last."""
    gates = torch.randn(B, T, *check.gates, device=device).to(dtype)
    made = [gates]
    if check.recurrent is not None:
        made.append((torch.randn(check.recurrent, device=device) * check.recurrent[-1] ** -0.5).to(dtype))
    made += [torch.randn(B, *check.gates[1:], device=device) for _ in range(check.states)]
    resets = torch.rand(B, T, device=device) < 0.02
    resets[0, 0] = resets[-1, -1] = True
    resets[B // 2, T // 2 : T // 2 + 2] = True
    return [x.requires_grad_() for x in made], resets


def results(check: Check, leaves: Sequence[Tensor], resets: Tensor, impl: str) -> list[Tensor]:
    """Outputs and every gradient under a fixed, non-constant upstream."""
    out = check.op(*leaves, resets, impl=impl, **dict(check.options))
    upstream = [torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=y.device).view(y.shape) for y in out]
    gradients = torch.autograd.grad(out, list(leaves), [g.to(y.dtype) for g, y in zip(upstream, out, strict=True)])
    return [*(y.detach() for y in out), *gradients]


def main(arguments: Sequence[str]) -> int:
    """0 when every case is within its bound and repeats bit for bit."""
    options = tyro.cli(Options, args=list(arguments), prog="python -m hotplate.bench.device_check")
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch fills fresh memory with NaN then
    wrong = 0
    for name in options.dtypes:
        dtype = getattr(torch, name)
        for check, B, T in checks(options.quick):
            label = f"{check.name} {dtype_name(dtype)} B{B} T{T} {list(check.gates)}"
            leaves, resets = inputs(check, B, T, dtype, options.device)
            try:
                found = results(check, leaves, resets, options.impl)
                again = results(check, leaves, resets, options.impl)
            except ValueError as refusal:
                print(f"refused  {label}: {refusal}", flush=True)
                continue
            wide = [x.detach().double().requires_grad_() for x in leaves]
            off = error(found, results(check, wide, resets, "reference"))
            repeats = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
            good = off <= BOUNDS[dtype] and repeats
            wrong += not good
            print(
                f"{'ok' if good else 'WRONG':8} {label}: error {off:.2e}{'' if repeats else ', differs on repetition'}",
                flush=True,
            )
    print(f"{wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
