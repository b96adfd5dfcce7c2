"""What every form of a norm has to satisfy, for rmsnorm and layernorm alike."""

from collections.abc import Callable, Sequence

import pytest
import torch
from numerics import Op, assert_bitwise, check, run
from torch import Tensor

SHAPES = [(1, 300), (5, 7, 41), (33, 130)]  # one row, odd, past a tile
Norm = Callable[..., Tensor | tuple[Tensor, ...]]


def inputs(shape: Sequence[int], rows: int, vectors: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """`rows` tensors of that shape and `vectors` weights of its last axis, away from 0 and 1."""
    made = [2 * torch.randn(shape) + 0.5 for _ in range(rows)]
    return [x.to(dtype) for x in [*made, *(0.5 + torch.rand(shape[-1]) for _ in range(vectors))]]


def form(norm: Norm, impl: str) -> Op:
    return lambda *arguments: norm(*arguments, eps=1e-3, impl=impl)


def assert_within_budget(norm: Norm, arguments: list[Tensor], impl: str, own: Op | None = None) -> None:
    check(form(norm, impl), form(norm, "reference"), arguments, own)


def assert_one_feature(norm: Norm, arguments: list[Tensor], impl: str) -> None:
    """D = 1: each gradient is one number or cancels, so that torch's own error is a matter of luck."""
    upstream = [torch.randn(arguments[0].shape)] * (2 if norm.__name__.startswith("add") else 1)
    truth = run(form(norm, "reference"), [x.double() for x in arguments], upstream)
    for mine, true in zip(run(form(norm, impl), arguments, upstream), truth, strict=True):
        torch.testing.assert_close(mine, true.float(), rtol=1e-5, atol=2e-5)


def assert_strides_do_not_matter(norm: Norm, arguments: list[Tensor], impl: str) -> None:
    """A transposed copy of the rows gives the same numbers."""
    strided = [x if x.ndim == 1 else x.transpose(0, 1).contiguous().transpose(0, 1) for x in arguments]
    upstream = [torch.randn(arguments[0].shape)] * (2 if norm.__name__.startswith("add") else 1)
    for mine, other in zip(
        run(form(norm, impl), strided, upstream), run(form(norm, impl), arguments, upstream), strict=True
    ):
        assert_bitwise("strided", mine, other)


def assert_runs_repeat(norm: Norm, arguments: list[Tensor], impl: str) -> None:
    upstream = [torch.randn(arguments[0].shape)] * (2 if norm.__name__.startswith("add") else 1)
    first = run(form(norm, impl), arguments, upstream)
    before = [x.clone() for x in arguments]
    try:
        for threads in (1, 2) if impl == "native" else (1,):  # torch's own sums follow the number of threads
            torch.set_num_threads(threads)
            for mine, other in zip(run(form(norm, impl), arguments, upstream), first, strict=True):
                assert_bitwise(f"{threads} threads", mine, other)
    finally:
        torch.set_num_threads(1)
    for x, other in zip(arguments, before, strict=True):
        assert_bitwise("input", x, other)


def assert_gradients_agree_with_differences(norm: Norm, arguments: list[Tensor]) -> None:
    leaves = [x.double().requires_grad_() for x in arguments]
    for impl in ("reference", "eager"):
        assert torch.autograd.gradcheck(form(norm, impl), leaves)


def assert_the_sum_alone_has_its_gradient(add_norm: Norm, arguments: list[Tensor], impl: str) -> None:
    """Only the sum is used: the norm's part of the gradient is zero, not missing."""
    leaves = [x.clone().requires_grad_() for x in arguments]
    _, total = form(add_norm, impl)(*leaves)
    upstream = torch.randn_like(total)
    gradients = torch.autograd.grad(total, leaves[:2], upstream)
    for gradient in gradients:
        torch.testing.assert_close(gradient, upstream)


def assert_says_what_is_wanted(norm: Norm, arguments: list[Tensor]) -> None:
    name = norm.__name__.removeprefix("add_")
    width = arguments[0].shape[-1]
    wrong = [
        ([arguments[0].int(), *arguments[1:]], "want a floating x"),
        ([*arguments[:-1], torch.ones(width + 1)], rf"float \[{width}\] on cpu, got torch.float32 \[{width + 1}\]"),
    ]
    for changed, words in wrong:
        with pytest.raises(ValueError, match=f"{name}: .*{words}"):
            norm(*changed)
    with pytest.raises(ValueError, match=f"{name}: want eps >= 0, got -1"):
        norm(*arguments, eps=-1)
    with pytest.raises(ValueError, match=f"{name}: want impl in"):
        norm(*arguments, impl="apex")
