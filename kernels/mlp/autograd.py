"""The derivative of a form of the activation: from the pre-activations alone."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hotplate.kernels.direct import direct


def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kind, *bias = inputs
    ctx.save_for_backward(x, *bias)


def derivative(backward: Callable[..., Any]) -> Callable[[Any, Tensor], tuple[Tensor | None, ...]]:
    """The backward of a form's operator, from `backward`(dy, x, kind), or from `backward`(dy, x, kind, bias) where the
    form makes the gradient of a bias."""

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *bias = ctx.saved_tensors
        made = direct(backward)(dy.contiguous(), x, ctx.kind, *bias)
        if not bias:
            return made, None
        return made[0], None, None if bias[0] is None else made[1]

    return differentiate
