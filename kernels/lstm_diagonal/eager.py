"""LSTM with diagonal recurrent weights in plain torch: a handful of operations per step, on tensors that stay in cache.

Letters: B rows, T steps, D width, K steps of a chunk. Gate blocks are (i, f, z, o). README.md derives the backward.
"""

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype
from hotplate.kernels.recurrence.resets import steps_that_reset

CPU_CHUNK_BYTES = 1 << 20  # of activated gates: they, their coefficients and the states share the second-level cache

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def saved_shape(B: int, T: int, D: int) -> tuple[int, ...]:
    """Of what the backward needs besides its inputs: h and c from the start on."""
    return 2, T + 1, B, D


def _chunks(gates: Tensor) -> list[slice]:
    """Steps whose work tensors stay in cache; all of them on a GPU, where launches cost more than traffic."""
    B, T, _, D = gates.shape
    step_bytes = max(1, 4 * B * D) * state_dtype(gates.dtype).itemsize
    K = T if gates.device.type != "cpu" else max(1, CPU_CHUNK_BYTES // step_bytes)
    return [slice(first, min(first + K, T)) for first in range(0, T, K)]


def _activate(act: Tensor, forget_offset: float) -> None:
    """act [..., 4, D] in place, from what the gates and the recurrence add up to."""
    if forget_offset:
        act[..., 1, :] += forget_offset
    act[..., :2, :].sigmoid_()
    act[..., 2, :].tanh_()
    act[..., 3, :].sigmoid_()


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    saving: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, D], h_last and c_last [B, D], and states of `saved_shape` (empty unless saving)."""
    B, T, _, D = gates.shape
    states = gates.new_empty(saved_shape(B, T, D), dtype=state_dtype(gates.dtype))
    for state, start in zip(states, (h0, c0), strict=True):
        state[0] = 0 if start is None else start
    act, tanh_c = states.new_empty(B, 4, D), states.new_empty(B, D)
    i, f, z, o = act.unbind(1)
    resetting, (hs, cs) = steps_that_reset(resets, T), (state.unbind(0) for state in states)
    h = gates.new_empty(B, T, D)
    for steps in _chunks(gates):
        for t, gates_t in enumerate(gates[:, steps].to(states.dtype).unbind(1), steps.start):
            h_before, c_before = hs[t], cs[t]
            if resets is not None and resetting[t]:
                h_before, c_before = (state.masked_fill(resets[:, t, None], 0) for state in (h_before, c_before))
            torch.addcmul(gates_t, recurrent, h_before[:, None], out=act)
            _activate(act, forget_offset)
            torch.mul(i, z, out=cs[t + 1]).addcmul_(f, c_before)
            torch.mul(o, torch.tanh(cs[t + 1], out=tanh_c), out=hs[t + 1])
        h[:, steps] = states[0, steps.start + 1 : steps.stop + 1].transpose(0, 1)
    return h, hs[T].clone(), cs[T].clone(), states if saving else states.new_empty(0)


def _coefficients(act: Tensor, c: Tensor, c_before: Tensor) -> tuple[Tensor, Tensor]:
    """What turns (dc, dc, dc, dh) into d(i, f, z, o) [K, B, 4, D], and dh into its part of dc."""
    i, f, z, o = act.unbind(2)
    tanh_c, coefficients = torch.tanh(c), torch.empty_like(act)
    for place, (upstream, gate) in ((0, (z, i)), (1, (c_before, f)), (3, (tanh_c, o))):
        _sigmoid_backward(upstream, gate, grad_input=coefficients[:, :, place])
    _tanh_backward(i, z, grad_input=coefficients[:, :, 2])
    return coefficients, torch.ops.aten.tanh_backward(o, tanh_c)


def backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    gates: Tensor,
    recurrent: Tensor,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dgates like gates, drecurrent [4, D], dh0 and dc0 [B, D]."""
    resetting, c = steps_that_reset(resets, gates.shape[1]), saved[1]
    carry_h, carry_c = (torch.zeros_like(c[0]) if d is None else d.clone() for d in (dh_last, dc_last))
    dgates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    drecurrent = torch.zeros_like(recurrent)
    for steps in reversed(_chunks(gates)):
        h_before, c_before = saved[:, steps]
        if resets is not None:
            h_before, c_before = (x.masked_fill(resets[:, steps].t()[..., None], 0) for x in (h_before, c_before))
        act = torch.addcmul(gates[:, steps].transpose(0, 1).to(c.dtype), recurrent, h_before[:, :, None])
        _activate(act, forget_offset)
        dpre, dc_per_dh = _coefficients(act, c[steps.start + 1 : steps.stop + 1], c_before)
        dhs = dh[:, steps].transpose(0, 1).to(c.dtype)
        for k in range(len(act) - 1, -1, -1):
            carry_h += dhs[k]
            carry_c.addcmul_(carry_h, dc_per_dh[k])
            dpre[k, :, :3] *= carry_c[:, None]
            dpre[k, :, 3] *= carry_h
            carry_c *= act[k, :, 1]
            torch.sum(dpre[k] * recurrent, 1, out=carry_h)
            if resets is not None and resetting[steps.start + k]:
                for carry in (carry_h, carry_c):
                    carry.masked_fill_(resets[:, steps.start + k, None], 0)
        dgates[:, steps] = dpre.transpose(0, 1)
        drecurrent += (dpre * h_before[:, :, None]).sum((0, 1))
    return dgates, drecurrent, carry_h, carry_c
