"""Recurrent kernels and Newton-Schulz on the device itself against float64: random inputs, poisoned buffers.

`python -m hotplate.bench.device_check --device cuda --impl triton`. Prints a line per case and exits with 1 when one is
outside its bound. Bounds are relative Frobenius errors: rounding of the inputs' dtype, twice over; of Newton-Schulz,
whose steps magnify rounding, twice the error of the same steps made of torch's products, and once the rounding.
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
from hotplate.kernels.newton_schulz import newton_schulz
from hotplate.kernels.newton_schulz.op import IMPLS as ORTHOGONAL_IMPLS
from hotplate.kernels.qlstm import qlstm

BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 1.5e-2}
Op = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Options:
    """Check recurrent kernels and Newton-Schulz on a device."""

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


def matrices(quick: bool) -> list[tuple[int, ...]]:
    """Stacks for Newton-Schulz: one number, odd sides, whole tiles and one past them, tall and wide, GPT-small's."""
    small = [(1, 1), (3, 40, 129), (129, 64), (2, 128, 256)]
    return small if quick else [*small, (5, 513, 300), (48, 768, 768), (768, 3072), (12, 3072, 768), (1024, 4096)]


def report(label: str, found: Sequence[Tensor], again: Sequence[Tensor], truth: Sequence[Tensor], bound: float) -> bool:
    """Prints the case; whether it is within its bound and repeats bit for bit."""
    off = error(found, truth)
    repeats = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    good = off <= bound and repeats
    text = f"{'ok' if good else 'WRONG':8} {label}: error {off:.2e}{'' if repeats else ', differs on repetition'}"
    print(text, flush=True)
    return good


def recurrent_is_right(check: Check, B: int, T: int, dtype: torch.dtype, options: Options) -> bool:
    """One recurrent case; what its room refuses is no error."""
    label = f"{check.name} {dtype_name(dtype)} B{B} T{T} {list(check.gates)}"
    leaves, resets = inputs(check, B, T, dtype, options.device)
    try:
        found, again = (results(check, leaves, resets, options.impl) for _ in range(2))
    except ValueError as refusal:
        print(f"refused  {label}: {refusal}", flush=True)
        return True
    wide = [x.detach().double().requires_grad_() for x in leaves]
    return report(label, found, again, results(check, wide, resets, "reference"), BOUNDS[dtype])


def orthogonal_is_right(shape: tuple[int, ...], dtype: torch.dtype, options: Options) -> bool:
    """One stack of matrices."""
    g = torch.randn(shape, device=options.device).to(dtype)
    found, again = ([newton_schulz(g, impl=options.impl)] for _ in range(2))
    truth = [newton_schulz(g.double(), impl="reference")]
    bound = 2 * error([newton_schulz(g, impl="eager")], truth) + BOUNDS[dtype]
    return report(f"newton_schulz {dtype_name(dtype)} {list(shape)}", found, again, truth, bound)


def main(arguments: Sequence[str]) -> int:
    """0 when every case is within its bound and repeats bit for bit."""
    options = tyro.cli(Options, args=list(arguments), prog="python -m hotplate.bench.device_check")
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch fills fresh memory with NaN then
    right = []
    for name in options.dtypes:
        dtype = getattr(torch, name)
        right += [recurrent_is_right(check, B, T, dtype, options) for check, B, T in checks(options.quick)]
        if options.impl in ORTHOGONAL_IMPLS:
            right += [orthogonal_is_right(shape, dtype, options) for shape in matrices(options.quick)]
    wrong = right.count(False)
    print(f"{wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
