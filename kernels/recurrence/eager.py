"""Multi-head LSTM in plain torch: one batched product and a handful of in-place operations per step.

Letters: B rows, T steps, H heads, K head width, R recurrent matrices (H, or 1 shared by all heads).
Work tensors are time-major and hold the gates as (o, i, f, z), so that one sigmoid serves three gates and the
backward multiplies three coefficients by dc at once. The backward is derived in kernels/lstm/README.md.
"""

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype
from hotplate.kernels.recurrence.autograd import Form, Shapes, add_product, before_each_step, recurrent_gradient
from hotplate.kernels.recurrence.resets import steps_that_reset

_ORDER = (3, 0, 1, 2)  # block of (i, f, z, o) held at each place of (o, i, f, z)


def _matrix(recurrent: Tensor, dtype: torch.dtype) -> Tensor:
    """[4, R, K, K] (i, f, z, o) -> [R, K, 4 K] (o, i, f, z), rounded to `dtype`, held in the state dtype."""
    _, R, K, _ = recurrent.shape
    rounded = recurrent.detach().to(dtype).to(state_dtype(dtype))
    # Out-major in memory: products of a step are then 1.1 (forward) and 1.4 (backward) times as fast on a CPU
    # (8 rows, K 512, fp32, one thread of an AMD EPYC Zen 4, 2026-11-22).
    return rounded[list(_ORDER)].permute(1, 0, 3, 2).reshape(R, 4 * K, K).mT


def _starts(resets: Tensor | None) -> Tensor | None:
    """[T, 1, B, 1]: where a state is replaced by 0. A product with 0 would let a NaN through."""
    return None if resets is None else resets.t()[:, None, :, None]


def _run(
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
    starts, zero = _starts(resets), h.new_zeros(())
    tanh_c, kept_h, kept_c = (torch.empty_like(h[0]) for _ in range(3))
    resetting = steps_that_reset(resets, T)
    products = act.view(T, R, -1, 4 * K).unbind(0)
    o_i_f, z_gate = act[:, :, :, :3].unbind(0), act[:, :, :, 3].unbind(0)
    o_gate, i_gate, f_gate = (act[:, :, :, place].unbind(0) for place in range(3))
    hs, cs = h.unbind(0), c.unbind(0)
    for t in range(T):
        h_before, c_before = hs[t], cs[t]
        if starts is not None and resetting[t]:
            h_before = torch.where(starts[t], zero, h_before, out=kept_h)
            c_before = torch.where(starts[t], zero, c_before, out=kept_c)
        add_product(products[t], h_before.view(R, -1, K), matrix)
        o_i_f[t].sigmoid_()
        z_gate[t].tanh_()
        torch.mul(i_gate[t], z_gate[t], out=cs[t + 1]).addcmul_(f_gate[t], c_before)
        torch.mul(o_gate[t], torch.tanh(cs[t + 1], out=tanh_c), out=hs[t + 1])
        if gates.dtype != wide:
            hs[t + 1].copy_(hs[t + 1].to(gates.dtype))
    return act, h, c


def _coefficients(act: Tensor, c: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """What turns (dh, dc, dc, dc) into d(o, i, f, z) [T, H, B, 4, K], and dh into its part of dc."""
    o, i, f, z = act.unbind(3)
    tanh_c = torch.tanh(c[1:])
    coefficients = torch.empty_like(act)
    sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    sigmoid_backward.grad_input(tanh_c, o, grad_input=coefficients[:, :, :, 0])
    sigmoid_backward.grad_input(z, i, grad_input=coefficients[:, :, :, 1])
    c_before = c[:-1] if starts is None else c[:-1].masked_fill(starts, 0)
    sigmoid_backward.grad_input(c_before, f, grad_input=coefficients[:, :, :, 2])
    tanh_backward.grad_input(i, z, grad_input=coefficients[:, :, :, 3])
    return coefficients, torch.ops.aten.tanh_backward(o, tanh_c)


def _run_back(
    dh: Tensor, dc: Tensor, act: Tensor, c: Tensor, matrix: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dpre [T, H, B, 4, K], and dh0 and dc0 [H, B, K].

    dh [T + 1, H, B, K] holds what arrives from outside at the start and after every step, dc [H, B, K] what
    arrives at the last state; both are overwritten.
    """
    T, H, B, _, K = act.shape
    R = len(matrix)
    starts, resetting = _starts(resets), steps_that_reset(resets, T)
    dpre, dc_per_dh = _coefficients(act, c, starts)
    # One sum per gate: a single chain of 4 K terms loses more digits than torch's own gradient, which has such sums.
    matrices = matrix.mT.unflatten(1, (4, K))
    operands = dpre.view(T, R, -1, 4, K).transpose(2, 3).unbind(0)
    dhs, dc_per_dhs, fs = dh.unbind(0), dc_per_dh.unbind(0), act[:, :, :, 2].unbind(0)
    d_o, d_ifz = dpre[:, :, :, 0].unbind(0), dpre[:, :, :, 1:].unbind(0)
    for t in range(T - 1, -1, -1):
        dc.addcmul_(dhs[t + 1], dc_per_dhs[t])
        d_o[t].mul_(dhs[t + 1])
        d_ifz[t].mul_(dc[:, :, None])
        dc.mul_(fs[t])
        before = torch.matmul(operands[t], matrices).sum(1).view(H, B, K)
        if starts is not None and resetting[t]:
            for arriving in (before, dc):
                arriving.masked_fill_(starts[t], 0)
        dhs[t].add_(before)
    return dpre, dhs[0], dc


def kept(B: int, T: int, H: int, K: int) -> Shapes:
    """Activated gates, and cells from the start on."""
    return (T, H, B, 4, K), (T + 1, H, B, K)


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """24 bytes per element are kept for the backward in fp32."""
    B, T, _, H, K = gates.shape
    act, h, c = _run(gates, _matrix(recurrent, gates.dtype), h0, c0, resets, forget_offset)
    h_out = gates.new_empty(B, T, H, K).copy_(h[1:].permute(2, 0, 1, 3))
    h_last, c_last = (state[T].transpose(0, 1).clone(memory_format=torch.contiguous_format) for state in (h, c))
    return h_out, h_last, c_last, *((act, c) if keep else (act.new_empty(0), c.new_empty(0)))


def backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    h: Tensor,
    act: Tensor,
    c: Tensor,
    gates: None,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, H, B, _, K = act.shape
    dh_states = act.new_zeros(T + 1, H, B, K)
    dh_states[1:] = dh.permute(1, 2, 0, 3)
    if dh_last is not None:
        dh_states[T] += dh_last.transpose(0, 1)
    dc = act.new_zeros(H, B, K) if dc_last is None else dc_last.transpose(0, 1).clone()
    dpre, dh0, dc0 = _run_back(dh_states, dc, act, c, _matrix(recurrent, h.dtype), resets)
    ordered = act.new_empty(B, T, 4, H, K)
    for place, block in enumerate(_ORDER):
        ordered[:, :, block].copy_(dpre[:, :, :, place].permute(2, 0, 1, 3))
    drecurrent = recurrent_gradient(before_each_step(h, h0, resets, ordered.dtype), ordered, recurrent)
    dgates = ordered.to(h.dtype)
    return dgates, drecurrent, dh0.transpose(0, 1).contiguous(), dc0.transpose(0, 1).contiguous()


FORM = Form(forward, backward, kept)
