"""Every kernel on the device itself against float64: random inputs, poisoned buffers, the shapes of device_cases.py.

`python -m hotplate.bench.device_check --device cuda --impl triton`. Prints a line per case and exits with 1 when one is
outside its bound. Bounds are relative Frobenius errors: rounding of the inputs' dtype, twice over; of Newton-Schulz,
whose steps magnify rounding, twice the error of the same steps made of torch's products, and once the rounding.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from hotplate.bench.device_cases import Case, cases
from hotplate.bench.harness import dtype_name, error
from hotplate.kernels.adamw import adamw
from hotplate.kernels.newton_schulz import newton_schulz
from hotplate.kernels.newton_schulz.op import IMPLS as ORTHOGONAL_IMPLS

BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 1.5e-2}


@dataclass(frozen=True)
class Options:
    """Check every kernel on a device."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda"""
    impl: str = "triton" if torch.cuda.is_available() else "native"
    """implementation to check"""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """dtypes of gates and outputs"""
    quick: bool = False
    """small shapes only"""


def results(case: Case, leaves: Sequence[Tensor], impl: str) -> list[Tensor]:
    """Outputs and every gradient under a fixed, non-constant upstream."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    found = case.call(*leaves, impl=impl)
    out = [found] if isinstance(found, Tensor) else list(found)
    upstream = [torch.linspace(-1, 2, y.numel(), dtype=torch.float64, device=y.device).view(y.shape) for y in out]
    gradients = torch.autograd.grad(out, leaves, [g.to(y.dtype) for g, y in zip(upstream, out, strict=True)])
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


def case_is_right(case: Case, dtype: torch.dtype, impl: str) -> bool:
    """What its room refuses is no error."""
    label = f"{case.label} {dtype_name(dtype)}"
    try:
        found, again = (results(case, case.leaves, impl) for _ in range(2))
    except ValueError as refusal:
        if ": want " not in str(refusal):  # as all refusals are worded
            raise
        print(f"refused  {label}: {refusal}", flush=True)
        return True
    truth = results(case, [x.double() for x in case.leaves], "reference")
    return report(label, found, again, truth, BOUNDS[dtype])


def adamw_is_right(copied: bool, arriving: torch.dtype | None, options: Options) -> bool:
    """Four updates of tensors of odd sizes and places, the second of them skipped. Gradients of dtype `arriving`; None:
    of the weights'."""
    sizes = ((1,), (7, 33), (2048,), (3, 5000)) + (() if options.quick else ((768, 3072), (4097, 513)))
    device, state = options.device, {}
    initial = [torch.randn(size, device=device) for size in sizes]
    gradients = [[torch.randn_like(w) for w in initial] for _ in range(4)]
    for name, impl, dtype in (
        ("found", options.impl, torch.float32),
        ("again", options.impl, torch.float32),
        ("truth", "reference", torch.float64),
    ):
        weights = [w.to(dtype, copy=True) for w in initial]
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        steps = [torch.zeros((), device=device) for _ in weights]
        copies = [w.bfloat16() for w in weights] if copied else None
        for index, gradient in enumerate(gradients):
            adamw(
                weights, [g.to(arriving or dtype, copy=True) for g in gradient], first, second, steps, copies=copies,
                impl=impl, lr=1e-2, weight_decay=0.1, scale=torch.tensor(0.5, device=device),
                skipped=torch.tensor(float(index == 1), device=device),
            )  # fmt: skip
        state[name] = [*weights, *first, *second, *steps, *(copies or [])]
    bound = BOUNDS[torch.bfloat16 if copied else torch.float32]
    label = f"adamw {'with copies ' if copied else ''}{dtype_name(arriving) if arriving else ''}"
    return report(label, state["found"], state["again"], state["truth"], bound)


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
        right += [case_is_right(case, dtype, options.impl) for case in cases(options.quick, dtype, options.device)]
        if options.impl in ORTHOGONAL_IMPLS:
            right += [orthogonal_is_right(shape, dtype, options) for shape in matrices(options.quick)]
    for copied, arriving in ((False, None), (True, None), (True, torch.bfloat16)):
        right.append(adamw_is_right(copied, arriving, options))
    wrong = right.count(False)
    print(f"{wrong} wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
