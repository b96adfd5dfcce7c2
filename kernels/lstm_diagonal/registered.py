"""The LSTM with diagonal recurrent weights as operators of torch: one pair for every implementation.

Letters: B rows, T steps, D width.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype

# An implementation is a module with `saved_shape`, `forward` and `backward`; triton's is imported when it is asked for.
FILES = {"eager": "eager", "native": "native", "triton": "streaming"}


def _module(impl: str) -> ModuleType:
    return importlib.import_module(f"hotplate.kernels.lstm_diagonal.{FILES[impl]}")


@torch.library.custom_op("hotplate::lstm_diagonal", mutates_args=())
def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
    saving: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, D], h_last and c_last [B, D], and what the backward of `impl` needs (empty unless saving)."""
    return _module(impl).forward(gates, recurrent, h0, c0, resets, forget_offset, saving)


@forward.register_fake
def _(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
    saving: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, _, D = gates.shape
    wide = state_dtype(gates.dtype)
    saved = gates.new_empty(_module(impl).saved_shape(gates) if saving else (0,), dtype=wide)
    h_last, c_last = (gates.new_empty(B, D, dtype=wide) for _ in range(2))
    return gates.new_empty(B, T, D), h_last, c_last, saved


@torch.library.custom_op("hotplate::lstm_diagonal_backward", mutates_args=())
def backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    gates: Tensor,
    recurrent: Tensor,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dgates (contiguous, in the dtype of gates), drecurrent [4, D], dh0 and dc0 [B, D]."""
    return _module(impl).backward(dh, dh_last, dc_last, gates, recurrent, saved, resets, forget_offset)


@backward.register_fake
def _(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    gates: Tensor,
    recurrent: Tensor,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, _, _, D = gates.shape
    dgates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    dh0, dc0 = (gates.new_empty(B, D, dtype=saved.dtype) for _ in range(2))
    return dgates, torch.empty_like(recurrent), dh0, dc0


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gates, recurrent, _, _, resets, ctx.forget_offset, ctx.impl, _ = inputs
    ctx.set_materialize_grads(False)  # zeros for the saved tensor would cost as much as it does
    ctx.save_for_backward(gates, recurrent, output[3], resets)


def _differentiate(
    ctx: Any, dh: Tensor | None, dh_last: Tensor | None, dc_last: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    gates, recurrent, saved, resets = ctx.saved_tensors
    B, T, _, D = gates.shape
    dh = gates.new_zeros(B, T, D) if dh is None else dh.contiguous()
    dh_last, dc_last = (None if d is None else d.contiguous() for d in (dh_last, dc_last))
    results = backward(dh, dh_last, dc_last, gates, recurrent, saved, resets, ctx.forget_offset, ctx.impl)
    wanted = [d if needed else None for d, needed in zip(results, ctx.needs_input_grad, strict=False)]
    return *wanted, None, None, None, None


torch.library.register_autograd("hotplate::lstm_diagonal", _differentiate, setup_context=_setup_context)


def lstm_diagonal(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """See op.py. The weights go in wide: autograd rounds their gradient. Only eager reads other strides."""
    differentiable = (gates, recurrent, h0, c0)
    saving = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable)
    recurrent = recurrent.to(state_dtype(gates.dtype)).contiguous()
    if impl != "eager":
        gates = gates.contiguous()
        h0, c0, resets = (None if x is None else x.contiguous() for x in (h0, c0, resets))
    h, h_last, c_last, _ = forward(gates, recurrent, h0, c0, resets, forget_offset, impl, saving)
    return h, h_last, c_last
