"""The derivative of a form of the activation: from the pre-activations alone."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hotplate.kernels.direct import direct


def setup(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.kind = inputs
    ctx.save_for_backward(x)


def derivative(backward: Callable[[Tensor, Tensor, str], Tensor]) -> Callable[[Any, Tensor], tuple[Tensor, None]]:
    """The backward of a form's operator, from `backward`(dy, x, kind)."""

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return direct(backward)(dy.contiguous(), x, ctx.kind), None

    return differentiate
