"""The projection made of products in C, as operators that are opaque to torch.compile. fp32 and bf16 on a CPU.

Letters: M rows, I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hotplate.kernels.direct import direct
from hotplate.kernels.product.native import multiply


@torch.library.custom_op("hotplate::linear_native", mutates_args=())
def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [M, O] from x [M, I], weight [O, I] and bias [O], which is contiguous."""
    return multiply(x, weight.T, x.new_empty(len(x), len(weight)), bias)


@operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


@torch.library.custom_op("hotplate::linear_native_backward", mutates_args=())
def backward(dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias where `needs` asks for them, else empty."""
    dx, dweight, dbias = _gradients(dy, x, weight, needs)
    if needs[0]:
        multiply(dy, weight, dx)
    if needs[1]:
        multiply(dy.T, x, dweight)
    if needs[2]:
        torch.sum(dy, 0, out=dbias)
    return dx, dweight, dbias


@backward.register_fake
def _gradients(dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    dx, dweight, dbias = (x.new_empty(s if need else (0,)) for s, need in zip(shapes, needs, strict=True))
    return dx, dweight, dbias


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    made = direct(backward)(dy, *ctx.saved_tensors, needs)
    return tuple(gradient if need else None for gradient, need in zip(made, needs, strict=True))


# What torch's FlopCounterMode counts, from shapes.
@register_flop_formula(torch.ops.hotplate.linear_native)
def _(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * weight[0]


@register_flop_formula(torch.ops.hotplate.linear_native_backward)
def _(dy: list[int], x: list[int], weight: list[int], needs: list[bool], **_: Any) -> int:
    return 2 * x[0] * x[1] * weight[0] * sum(needs[:2])


torch.library.register_autograd("hotplate::linear_native", _differentiate, setup_context=_setup)
