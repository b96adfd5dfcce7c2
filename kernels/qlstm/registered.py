"""The quasi-LSTM as operators of torch: one pair for every implementation, opaque to torch.compile.

Letters: B rows, T steps, D width.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.bias import room_for
from hotplate.kernels.checks import state_dtype
from hotplate.kernels.direct import direct

# An implementation is a module with `saved_shape`, `forward` and `backward`; triton's is imported when it is asked for,
# and its `backward` alone takes room for the gradient of a bias.
MODULES = {
    name: f"hotplate.kernels.qlstm.{file}"
    for name, file in (("eager", "eager"), ("native", "native"), ("triton", "streaming"))
}


def _module(impl: str) -> ModuleType:
    return importlib.import_module(MODULES[impl])


@torch.library.custom_op("hotplate::qlstm", mutates_args=())
def forward(
    gates: Tensor,
    bias: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
    saving: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, T, D], c_last [B, D], and what the backward of `impl` needs (empty unless saving). bias is for that."""
    return _module(impl).forward(gates, c0, resets, forget_offset, saving)


@forward.register_fake
def _(gates: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    impl, saving = others[-2:]
    B, T, _, D = gates.shape
    wide = state_dtype(gates.dtype)
    saved = _module(impl).saved_shape(gates) if saving else (0,)
    return gates.new_empty(B, T, D), gates.new_empty(B, D, dtype=wide), gates.new_empty(saved, dtype=wide)


@torch.library.custom_op("hotplate::qlstm_backward", mutates_args=())
def backward(
    dh: Tensor,
    dc_last: Tensor | None,
    gates: Tensor,
    bias: Tensor | None,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dgates (contiguous, in the dtype of gates), dc0 [B, D], and the gradient of a bias, empty without one."""
    dbias = room_for(bias, gates)
    room = () if bias is None else (dbias,)
    return *_module(impl).backward(dh, dc_last, gates, saved, resets, forget_offset, *room), dbias


@backward.register_fake
def _(
    dh: Tensor,
    dc_last: Tensor | None,
    gates: Tensor,
    bias: Tensor | None,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, _, D = gates.shape
    dgates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    return dgates, gates.new_empty(B, D, dtype=saved.dtype), room_for(bias, gates)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gates, bias, _, resets, ctx.forget_offset, ctx.impl, saving = inputs
    ctx.set_materialize_grads(False)  # zeros for the saved tensor would cost as much as it does
    ctx.save_for_backward(gates, bias, output[2], resets)


def _differentiate(ctx: Any, dh: Tensor | None, dc_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    gates, bias, saved, resets = ctx.saved_tensors
    B, T, _, D = gates.shape
    dh = gates.new_zeros(B, T, D) if dh is None else dh.contiguous()
    dc_last = None if dc_last is None else dc_last.contiguous()
    dgates, dc0, dbias = direct(backward)(dh, dc_last, gates, bias, saved, resets, ctx.forget_offset, ctx.impl)
    of_bias = None if bias is None else dbias
    return dgates, of_bias, dc0 if ctx.needs_input_grad[2] else None, None, None, None, None


torch.library.register_autograd("hotplate::qlstm", _differentiate, setup_context=_setup_context)


def qlstm(
    gates: Tensor, bias: Tensor | None, c0: Tensor | None, resets: Tensor | None, forget_offset: float, impl: str
) -> tuple[Tensor, Tensor]:
    """See op.py. Only the eager form reads other strides than contiguous ones."""
    saving = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (gates, bias, c0))
    if impl != "eager":
        gates = gates.contiguous()
        c0, resets = (None if x is None else x.contiguous() for x in (c0, resets))
    h, c_last, _ = direct(forward)(gates, bias, c0, resets, forget_offset, impl, saving)
    return h, c_last
