"""The gradient of a projection's bias, made by what follows the projection.

y = x W^T + b has db = the sum of dy over rows, which alone is a pass over dy. Whatever comes next in the forward writes
dy in the backward, and can add it up as it does. So the projection takes b as a constant, and the next operation takes
b for its gradient alone: y has its values already.
"""

from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.checks import want


def want_bias(room: str, bias: Tensor | None, x: Tensor, axes: int) -> None:
    """ValueError unless bias is None or has the last `axes` axes of `x`, a floating dtype and the device."""
    if bias is None:
        return
    shape = tuple(x.shape[x.ndim - axes :])
    want(
        room,
        tuple(bias.shape) == shape and bias.is_floating_point() and bias.device == x.device,
        f"bias None or float {list(shape)} on {x.device}",
        f"{bias.dtype} {list(bias.shape)} on {bias.device}",
        "it is what was added to every row",
    )


def room_for(bias: Tensor | None, like: Tensor) -> Tensor:
    """For the gradient of a bias, numbers side by side; empty without one: an operator of torch gives tensors."""
    return like.new_empty(0) if bias is None else bias.new_empty(bias.shape)


class _Received(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.rows, ctx.dtype = tuple(range(x.ndim - bias.ndim)), bias.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor]:
        return dx, dx.sum(ctx.rows).to(ctx.dtype)


def received(x: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., *shape of bias], with the gradient of bias: for forms that do not make it themselves."""
    if bias is None:
        return x
    made: Tensor = _Received.apply(x, bias)
    return made
