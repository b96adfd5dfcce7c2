"""The loss as operators of torch, opaque to torch.compile: a library's products around a form's work on the logits.

Letters: N targets, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype
from hotplate.kernels.cross_entropy.chunks import sweep
from hotplate.kernels.cross_entropy.reference import Loss
from hotplate.kernels.direct import direct


def _gradients(x: Tensor, weight: Tensor, needs_dx: bool, needs_dweight: bool) -> tuple[Tensor, Tensor]:
    wide = state_dtype(x.dtype)
    dx = x.new_empty(x.shape if needs_dx else (0,), dtype=wide)
    return dx, weight.new_empty(weight.shape if needs_dweight else (0,), dtype=wide)


@torch.library.custom_op("hotplate::linear_cross_entropy", mutates_args=())
def cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor, factors: Tensor,
    scale: float, cap: float, smoothing: float, z: float, chunk_bytes: int, impl: str,
    needs_dx: bool, needs_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """sum_n factors_n loss_n, and its gradients in the wide dtype where they are needed (else empty)."""
    loss, needs = Loss(scale=scale, cap=cap, smoothing=smoothing, z=z), (needs_dx, needs_dweight)
    losses, _, dx, dweight = sweep(x, weight, targets, scored, factors, None, loss, chunk_bytes, impl, needs)
    return losses.mul_(factors).sum(), dx, dweight


@cross_entropy.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor, factors: Tensor,
    scale: float, cap: float, smoothing: float, z: float, chunk_bytes: int, impl: str,
    needs_dx: bool, needs_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return x.new_empty((), dtype=state_dtype(x.dtype)), *_gradients(x, weight, needs_dx, needs_dweight)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtypes, ctx.needs = (inputs[0].dtype, inputs[1].dtype), inputs[-2:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * upstream, rounded as it is written. (torch derives nothing of what is written to a given place.)"""
    if torch.is_grad_enabled() or gradient.dtype == dtype:
        return torch.mul(gradient, upstream).to(dtype)
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))


def _rescale(ctx: Any, upstream: Tensor | None, *second: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient exists but for one factor."""
    if any(gradient is not None for gradient in second):
        raise RuntimeError("linear_cross_entropy: its gradient has no derivative; use impl='reference'")
    found = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs, strict=True)
    gradients = [None if upstream is None or not needed else _scaled(d, upstream, t) for d, t, needed in found]
    return *gradients, *[None] * 11


torch.library.register_autograd("hotplate::linear_cross_entropy", _rescale, setup_context=_keep_gradients)


@torch.library.custom_op("hotplate::linear_losses", mutates_args=())
def losses(
    x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor,
    scale: float, cap: float, smoothing: float, z: float, chunk_bytes: int, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """loss [N] and lse [N]."""
    loss = Loss(scale=scale, cap=cap, smoothing=smoothing, z=z)
    return sweep(x, weight, targets, scored, None, None, loss, chunk_bytes, impl, (False, False))[:2]


@losses.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor,
    scale: float, cap: float, smoothing: float, z: float, chunk_bytes: int, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(len(x), dtype=state_dtype(x.dtype)), x.new_empty(len(x), dtype=state_dtype(x.dtype))


@torch.library.custom_op("hotplate::linear_losses_backward", mutates_args=())
def losses_backward(
    upstream: Tensor, lse: Tensor, x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor,
    scale: float, cap: float, smoothing: float, z: float, chunk_bytes: int, impl: str,
    needs_dx: bool, needs_dweight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The logits are computed again, chunk by chunk; dx and dweight in the wide dtype where needed (else empty)."""
    loss, needs = Loss(scale=scale, cap=cap, smoothing=smoothing, z=z), (needs_dx, needs_dweight)
    scored = scored & (upstream != 0)
    factors = upstream.masked_fill(~scored, 0)
    return sweep(x, weight, targets, scored, factors, lse, loss, chunk_bytes, impl, needs)[2:]


@losses_backward.register_fake
def _(
    upstream: Tensor, lse: Tensor, x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor,
    scale: float, cap: float, smoothing: float, z: float, chunk_bytes: int, impl: str,
    needs_dx: bool, needs_dweight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _gradients(x, weight, needs_dx, needs_dweight)


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[4:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *inputs[:4])


def _sweep_again(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None, None]
    if upstream is not None:
        saved = ctx.saved_tensors
        x, weight = saved[1:3]
        made = direct(losses_backward)(upstream, *saved, *ctx.options, *ctx.needs_input_grad[:2])
        wanted = zip(made, (x, weight), ctx.needs_input_grad, strict=False)
        gradients = [d.to(like.dtype) if needed else None for d, like, needed in wanted]
    return *gradients, *[None] * 8


torch.library.register_autograd("hotplate::linear_losses", _sweep_again, setup_context=_keep_operands)
