"""The derivative of a form of cut_heads. Without weights nothing of qkv is kept but its shape."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hotplate.kernels.direct import direct

Backward = Callable[..., tuple[Tensor, Tensor]]


def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, _, cosine, sine, q_weight, k_weight, ctx.eps = inputs
    ctx.save_for_backward(None if q_weight is None else qkv, cosine, sine, q_weight, k_weight)


def derivative(backward: Backward) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward of a form's operator, from `backward`(dq, dk, dv, qkv, cosine, sine, q_weight, k_weight, eps)."""

    def differentiate(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a recomputed block makes them at this call
        q_weight, k_weight = saved[3:]
        dqkv, dweights = direct(backward)(dq.contiguous(), dk.contiguous(), dv.contiguous(), *saved, ctx.eps)
        if q_weight is None:
            return dqkv, None, None, None, None, None, None
        return dqkv, None, None, None, dweights[0].to(q_weight.dtype), dweights[1].to(k_weight.dtype), None

    return differentiate
