"""Multi-head LSTM in plain torch: one batched product and a handful of in-place operations per step.

Letters: B rows, T steps, H heads, K head width, R recurrent matrices (H, or 1 shared by all heads).
Work tensors are time-major and hold the gates as (o, i, f, z), so that one sigmoid serves three gates and the
backward multiplies three coefficients by dc at once. The backward is derived in README.md.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hotplate.kernels.checks import state_dtype

_ORDER = (3, 0, 1, 2)  # block of (i, f, z, o) held at each place of (o, i, f, z)


def _matrix(recurrent: Tensor, dtype: torch.dtype) -> Tensor:
    """[4, R, K, K] (i, f, z, o) -> [R, K, 4 K] (o, i, f, z), rounded to `dtype`, held in the state dtype."""
    _, R, K, _ = recurrent.shape
    rounded = recurrent.detach().to(dtype).to(state_dtype(dtype))
    # Out-major in memory: products of a step are then 1.1 (forward) and 1.4 (backward) times as fast on a CPU
    # (8 rows, K 512, fp32, one thread of an AMD EPYC Zen 4, 2026-11-22).
    return rounded[list(_ORDER)].permute(1, 0, 3, 2).reshape(R, 4 * K, K).mT


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, all [R, ...]; one product is a fifth faster by itself than as a batch of one."""
    if len(right) == 1:
        total[0].addmm_(left[0], right[0])
    else:
        total.baddbmm_(left, right)


def _keep(resets: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """[T, 1, B, 1]: what multiplies the state before each step."""
    return None if resets is None else (~resets).t()[:, None, :, None].to(dtype)


def _steps_that_reset(resets: Tensor | None, T: int) -> list[bool]:
    """Steps at which a row may be reset: every step on a GPU, which is not stopped to ask."""
    if resets is None:
        return [False] * T
    return resets.any(0).tolist() if resets.device.type == "cpu" else [True] * T


def _forward(
    gates: Tensor,
    matrix: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Time-major act [T, H, B, 4, K] activated gates, h and c [T + 1, H, B, K] from the start on."""
    B, T, _, H, K = gates.shape
    wide, R = matrix.dtype, len(matrix)
    act = gates.new_empty(T, H, B, 4, K, dtype=wide)
    for place, block in enumerate(_ORDER):
        act[:, :, :, place].copy_(gates[:, :, block].permute(1, 2, 0, 3))
    if forget_offset:
        act[:, :, :, 2] += forget_offset
    h, c = (gates.new_empty(T + 1, H, B, K, dtype=wide) for _ in range(2))
    for state, start in ((h, h0), (c, c0)):
        state[0] = 0 if start is None else start.transpose(0, 1)
    if gates.dtype != wide:
        h[0] = h[0].to(gates.dtype)
    keep = _keep(resets, wide)
    tanh_c, kept_h, kept_c = (torch.empty_like(h[0]) for _ in range(3))
    resetting = _steps_that_reset(resets, T)
    products = act.view(T, R, -1, 4 * K).unbind(0)
    o_i_f, z_gate = act[:, :, :, :3].unbind(0), act[:, :, :, 3].unbind(0)
    o_gate, i_gate, f_gate = (act[:, :, :, place].unbind(0) for place in range(3))
    hs, cs = h.unbind(0), c.unbind(0)
    for t in range(T):
        h_before, c_before = hs[t], cs[t]
        if keep is not None and resetting[t]:
            h_before = torch.mul(h_before, keep[t], out=kept_h)
            c_before = torch.mul(c_before, keep[t], out=kept_c)
        _add_product(products[t], h_before.view(R, -1, K), matrix)
        o_i_f[t].sigmoid_()
        z_gate[t].tanh_()
        torch.mul(i_gate[t], z_gate[t], out=cs[t + 1]).addcmul_(f_gate[t], c_before)
        torch.mul(o_gate[t], torch.tanh(cs[t + 1], out=tanh_c), out=hs[t + 1])
        if gates.dtype != wide:
            hs[t + 1].copy_(hs[t + 1].to(gates.dtype))
    return act, h, c


def _coefficients(act: Tensor, c: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """What turns (dh, dc, dc, dc) into d(o, i, f, z) [T, H, B, 4, K], and dh into its part of dc."""
    o, i, f, z = act.unbind(3)
    tanh_c = torch.tanh(c[1:])
    coefficients = torch.empty_like(act)
    sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    sigmoid_backward.grad_input(tanh_c, o, grad_input=coefficients[:, :, :, 0])
    sigmoid_backward.grad_input(z, i, grad_input=coefficients[:, :, :, 1])
    c_before = c[:-1] if keep is None else c[:-1] * keep
    sigmoid_backward.grad_input(c_before, f, grad_input=coefficients[:, :, :, 2])
    tanh_backward.grad_input(i, z, grad_input=coefficients[:, :, :, 3])
    return coefficients, torch.ops.aten.tanh_backward(o, tanh_c)


def _backward(
    dh: Tensor, dc: Tensor, act: Tensor, c: Tensor, matrix: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dpre [T, H, B, 4, K], and dh0 and dc0 [H, B, K].

    dh [T + 1, H, B, K] holds what arrives from outside at the start and after every step, dc [H, B, K] what
    arrives at the last state; both are overwritten.
    """
    T, H, B, _, K = act.shape
    R = len(matrix)
    keep = _keep(resets, act.dtype)
    resetting = _steps_that_reset(resets, T)
    dpre, dc_per_dh = _coefficients(act, c, keep)
    forgets = act[:, :, :, 2] if keep is None else act[:, :, :, 2] * keep
    transposed = matrix.mT
    dhs, dc_per_dhs, fs = dh.unbind(0), dc_per_dh.unbind(0), forgets.unbind(0)
    d_o, d_ifz = dpre[:, :, :, 0].unbind(0), dpre[:, :, :, 1:].unbind(0)
    products = dpre.view(T, R, -1, 4 * K).unbind(0)
    for t in range(T - 1, -1, -1):
        dc.addcmul_(dhs[t + 1], dc_per_dhs[t])
        d_o[t].mul_(dhs[t + 1])
        d_ifz[t].mul_(dc[:, :, None])
        dc.mul_(fs[t])
        if keep is not None and resetting[t]:
            dhs[t].addcmul_(torch.bmm(products[t], transposed).view(H, B, K), keep[t])
        else:
            _add_product(dhs[t].view(R, -1, K), products[t], transposed)
    return dpre, dhs[0], dc


class LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
    ) -> Any:
        matrix = _matrix(recurrent, gates.dtype)
        act, h, c = _forward(gates, matrix, h0, c0, resets, forget_offset)
        ctx.save_for_backward(act, h, c, matrix, resets)
        ctx.dtypes = gates.dtype, recurrent.dtype
        return _outputs(gates, h, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dh_last: Tensor, dc_last: Tensor) -> Any:
        act, h, c, matrix, resets = ctx.saved_tensors
        gates_dtype, recurrent_dtype = ctx.dtypes
        T, H, B, _, K = act.shape
        dh_states = act.new_zeros(T + 1, H, B, K)
        dh_states[1:] = dh.permute(1, 2, 0, 3)
        dh_states[T] += dh_last.transpose(0, 1)
        dpre, dh0, dc0 = _backward(dh_states, dc_last.transpose(0, 1).clone(), act, c, matrix, resets)
        dgates = act.new_empty(B, T, 4, H, K, dtype=gates_dtype)
        for place, block in enumerate(_ORDER):
            dgates[:, :, block].copy_(dpre[:, :, :, place].permute(2, 0, 1, 3))
        drecurrent = None
        if ctx.needs_input_grad[1]:
            R, keep = len(matrix), _keep(resets, act.dtype)
            h_before = h[:-1] if keep is None else h[:-1] * keep
            left = h_before.view(T, R, -1, K).transpose(0, 1).reshape(R, -1, K)
            right = dpre.view(T, R, -1, 4 * K).transpose(0, 1).reshape(R, -1, 4 * K)
            product = torch.bmm(left.transpose(1, 2), right).view(R, K, 4, K).permute(2, 0, 1, 3)
            drecurrent = product.new_empty(4, R, K, K, dtype=recurrent_dtype)
            drecurrent[list(_ORDER)] = product.to(recurrent_dtype)
        dstart = [d.transpose(0, 1) if ctx.needs_input_grad[n] else None for n, d in ((2, dh0), (3, dc0))]
        return dgates, drecurrent, *dstart, None, None


def _outputs(gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _, H, K = gates.shape
    h_out = gates.new_empty(B, T, H, K).copy_(h[1:].permute(2, 0, 1, 3))
    h_last, c_last = (state[T].transpose(0, 1).clone(memory_format=torch.contiguous_format) for state in (h, c))
    return h_out, h_last, c_last


def lstm(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See op.py."""
    differentiable = (gates, recurrent, h0, c0)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable):
        return LSTM.apply(gates, recurrent, h0, c0, resets, forget_offset)
    _, h, c = _forward(gates, _matrix(recurrent, gates.dtype), h0, c0, resets, forget_offset)
    return _outputs(gates, h, c)
