"""The derivative of a form of the norm, from its forward's statistics."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hotplate.kernels.direct import direct


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, _ = inputs
    ctx.set_materialize_grads(False)  # zeros for the sum or the statistics would cost a pass
    ctx.has_residual, ctx.has_bias = residual is not None, bias is not None
    ctx.save_for_backward(x if residual is None else output[1], weight, bias, output[2])


def derivative(backward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward of a form's operator, from `backward`(dy, dtotal, total, weight, bias, statistics)."""

    def differentiate(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        total, weight, bias, statistics = ctx.saved_tensors
        dy = total.new_zeros(total.shape) if dy is None else dy.contiguous()
        dtotal = None if dtotal is None or not ctx.has_residual else dtotal.contiguous()
        dx, dweight, dbias = direct(backward)(dy, dtotal, total, weight, bias, statistics)
        of_bias = dbias.to(bias.dtype) if ctx.has_bias else None
        return dx, dx if ctx.has_residual else None, dweight.to(weight.dtype), of_bias, None

    return differentiate
