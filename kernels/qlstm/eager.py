"""Quasi-LSTM in plain torch: activations for many steps at once, one fused operation per step.

Letters: B rows, T steps, D width, K steps of a chunk. Work tensors are time-major: a step is contiguous.
The backward is the closed form derived in README.md.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype
from hotplate.kernels.recurrence.resets import steps_that_reset

CPU_CHUNK_BYTES = 1 << 18  # per gate: fastest of 2^15..2^20, AMD EPYC Zen 4, 2026-11-22

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def _chunk_steps(gates: Tensor) -> int:
    """Steps whose work tensors stay in cache; all of them on a GPU, where launches cost more than traffic."""
    B, T, _, D = gates.shape
    if gates.device.type != "cpu":
        return T
    step_bytes = max(1, B * D) * state_dtype(gates.dtype).itemsize
    return min(T, max(1, CPU_CHUNK_BYTES // step_bytes))


def _activate(pre: Tensor, act: Tensor, reset: Tensor | None, forget_offset: float) -> None:
    """Fills act [4, K, B, D] with (i, f kept, z, o) from pre [3 or 4, K, B, D]; reset is [K, B, 1].

    `f kept` is f, or 0 where the state is reset: what it multiplies must be finite there.
    """
    i, f, z, o = act
    pre = pre.to(act.dtype)
    torch.sigmoid(pre[-3] + forget_offset if forget_offset else pre[-3], out=f)
    if len(pre) == 4:
        torch.sigmoid(pre[0], out=i)
    else:
        torch.sub(1, f, out=i)
    torch.tanh(pre[-2], out=z)
    torch.sigmoid(pre[-1], out=o)
    if reset is not None:
        f.masked_fill_(reset, 0)


def _chunks(gates: Tensor, resets: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor | None, list[bool]]]:
    """(steps, pre [3 or 4, K, B, D], reset [K, B, 1], which steps may reset) from the first step to the last."""
    T, K = gates.shape[1], _chunk_steps(gates)
    resetting = steps_that_reset(resets, T)
    for first in range(0, T, K):
        steps = slice(first, min(first + K, T))
        reset = None if resets is None else resets[:, steps].t()[..., None]
        yield steps, gates[:, steps].permute(2, 1, 0, 3), reset, resetting[steps]


def _emptied(state: Tensor, reset: Tensor | None, resetting: Sequence[bool], k: int) -> Tensor:
    """`state` with 0 in rows that step k resets: a NaN times `f kept` would outlive the reset."""
    return state.masked_fill(reset[k], 0) if reset is not None and resetting[k] else state


def _work(gates: Tensor) -> Tensor:
    """Uninitialised act [4, K, B, D] for one chunk."""
    B, _, _, D = gates.shape
    return gates.new_empty(4, _chunk_steps(gates), B, D, dtype=state_dtype(gates.dtype))


def _forward(
    gates: Tensor, c0: Tensor | None, resets: Tensor | None, forget_offset: float, saving: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, T, D], c_last [B, D], and c [T + 1, B, D] from c0 on when saving (else scratch)."""
    B, T, _, D = gates.shape
    act = _work(gates)
    c = act.new_empty(T + 1 if saving else act.shape[1] + 1, B, D)
    h = gates.new_empty(B, T, D)
    c[0] = 0 if c0 is None else c0
    tanh_c = torch.empty_like(act[0])
    for steps, pre, reset, resetting in _chunks(gates, resets):
        size = steps.stop - steps.start
        i, f, z, o = chunk = act[:, :size]
        _activate(pre, chunk, reset, forget_offset)
        states = c[steps.start : steps.stop + 1] if saving else c[: size + 1]
        torch.mul(i, z, out=states[1:])
        each = states.unbind(0)
        for k, (c_t, c_before, f_t) in enumerate(zip(each[1:], each, f.unbind(0), strict=False)):
            c_t.addcmul_(f_t, _emptied(c_before, reset, resetting, k))
        torch.mul(o, torch.tanh(states[1:], out=tanh_c[:size]), out=h[:, steps].transpose(0, 1))
        if not saving:
            c[0] = each[-1]
    return h, (c[T] if saving else c[0]).clone(), c


def _backward_chunk(
    dh: Tensor,
    act: Tensor,
    c: Tensor,
    reset: Tensor | None,
    resetting: Sequence[bool],
    carry: Tensor,
    dpre: Tensor,
    work: Tensor,
) -> None:
    """Fills dpre [3 or 4, K, B, D] from dh [K, B, D] and carry [2, B, D], and moves carry one chunk back.

    carry is (f, dLoss/dc) of the step after the chunk, unmultiplied so that the seam rounds like any step.
    work is [2, K, B, D].
    """
    i, f, z, o = act
    dc, product = work
    tanh_c = torch.tanh(c[1:], out=product)
    torch.mul(dh, tanh_c, out=dc)
    _sigmoid_backward(dc, o, grad_input=dpre[-1])
    torch.mul(dh, o, out=dc)
    _tanh_backward(dc, tanh_c, grad_input=dc)
    f_after, dc_after = carry
    for k in range(len(dc) - 1, -1, -1):
        dc[k].addcmul_(f_after, dc_after)
        f_after, dc_after = f[k], _emptied(dc[k], reset, resetting, k)
    torch.stack((f_after, dc_after), out=carry)
    _tanh_backward(torch.mul(dc, i, out=product), z, grad_input=dpre[-2])
    c_before = c[:-1] if reset is None else c[:-1].masked_fill(reset, 0)
    if len(dpre) == 4:
        _sigmoid_backward(torch.mul(dc, z, out=product), i, grad_input=dpre[0])
        _sigmoid_backward(torch.mul(dc, c_before, out=product), f, grad_input=dpre[1])
    else:  # i = 1 - f, so f (1 - f) = i (1 - i), which a reset leaves alone
        torch.sub(c_before, z, out=product)
        _sigmoid_backward(product.mul_(dc), i, grad_input=dpre[0])


def saved_shape(gates: Tensor) -> tuple[int, ...]:
    """Of what the backward needs besides its inputs: c from the start on."""
    B, T, _, D = gates.shape
    return T + 1, B, D


def forward(
    gates: Tensor, c0: Tensor | None, resets: Tensor | None, forget_offset: float, saving: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, T, D], c_last [B, D], and c of `saved_shape` (empty unless saving)."""
    h, c_last, c = _forward(gates, c0, resets, forget_offset, saving)
    return h, c_last, c if saving else c.new_empty(0)


def backward(
    dh: Tensor, dc_last: Tensor | None, gates: Tensor, saved: Tensor, resets: Tensor | None, forget_offset: float
) -> tuple[Tensor, Tensor]:
    """dgates like gates, dc0 [B, D]."""
    dgates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    act = _work(gates)
    carry = torch.stack((torch.ones_like(saved[0]), torch.zeros_like(saved[0]) if dc_last is None else dc_last))
    work = torch.empty_like(act[:2])
    for steps, pre, reset, resetting in reversed(list(_chunks(gates, resets))):
        size = steps.stop - steps.start
        _activate(pre, act[:, :size], reset, forget_offset)
        _backward_chunk(
            dh[:, steps].transpose(0, 1),
            act[:, :size],
            saved[steps.start : steps.stop + 1],
            reset,
            resetting,
            carry,
            dgates[:, steps].permute(2, 1, 0, 3),
            work[:, :size],
        )
    return dgates, carry.prod(0)
