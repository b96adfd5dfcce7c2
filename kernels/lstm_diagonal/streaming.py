# mypy: disable-error-code="assignment"
"""LSTM with diagonal recurrent weights as two Triton kernels that stream rows: no shared memory, no barrier.

Letters: B rows, T steps, D width, K steps of a span, BD columns of a program. A program owns BD columns of one row and
walks over T with the weights, h and c in registers. All loads of a span are issued before its first step, so that
enough bytes are under way; (h, c) is stored once per span when a backward follows. The gradient of the weights leaves
as one part per row, added up afterwards: no atomics, runs repeat bitwise. Importing this needs Triton.
(mypy: the tuples of a kernel grow while it is unrolled.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import sigmoid, tanh
from hotplate.kernels.launch import interpreting, launch
from hotplate.kernels.sums import add_up

SPAN = 8  # K
COLUMNS_PER_WARP = 64  # two per lane: a row's load fills a 128-byte line in 16 bits
NUM_WARPS = 1  # programs are independent, and more of them hide more latency; not measured on a GPU


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    gates, recurrent, h0, c0, resets, h_out, h_last, c_last, checkpoints, T, D, offset,
    K: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """h0, c0, resets and checkpoints may be None."""
    blocks = tl.cdiv(D, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    inside = column < D
    spans = tl.cdiv(T, K)
    r_i = tl.load(recurrent + column, mask=inside, other=0.0)
    r_f = tl.load(recurrent + D + column, mask=inside, other=0.0)
    r_z = tl.load(recurrent + 2 * D + column, mask=inside, other=0.0)
    r_o = tl.load(recurrent + 3 * D + column, mask=inside, other=0.0)
    h = tl.zeros([BD], tl.float32)
    c = tl.zeros([BD], tl.float32)
    if h0 is not None:
        h = tl.load(h0 + row * D + column, mask=inside, other=0.0)
    if c0 is not None:
        c = tl.load(c0 + row * D + column, mask=inside, other=0.0)
    for span in range(0, spans):
        if checkpoints is not None:
            at = checkpoints + (row * spans + span) * (2 * D) + column
            tl.store(at, h, mask=inside)
            tl.store(at + D, c, mask=inside)
        first = row * T + span * K
        i_pre, f_pre, z_pre, o_pre, starts = (), (), (), (), ()
        for k in tl.static_range(K):
            here = inside & (span * K + k + 0 * column < T)
            at = gates + (first + k) * (4 * D) + column
            i_pre = i_pre + (tl.load(at, mask=here, other=0.0),)
            f_pre = f_pre + (tl.load(at + D, mask=here, other=0.0),)
            z_pre = z_pre + (tl.load(at + 2 * D, mask=here, other=0.0),)
            o_pre = o_pre + (tl.load(at + 3 * D, mask=here, other=0.0),)
            if resets is not None:
                starts = starts + (tl.load(resets + first + k, mask=span * K + k < T, other=0),)
        for k in tl.static_range(K):
            here = span * K + k + 0 * column < T
            if resets is not None:
                h = tl.where(starts[k] != 0, 0.0, h)
                c = tl.where(starts[k] != 0, 0.0, c)
            i = sigmoid(i_pre[k].to(tl.float32) + r_i * h, FAST)
            f = sigmoid(f_pre[k].to(tl.float32) + r_f * h + offset, FAST)
            z = tanh(z_pre[k].to(tl.float32) + r_z * h, FAST)
            o = sigmoid(o_pre[k].to(tl.float32) + r_o * h, FAST)
            c = tl.where(here, f * c + i * z, c)
            h = tl.where(here, o * tanh(c, FAST), h)
            tl.store(h_out + (first + k) * D + column, h.to(h_out.dtype.element_ty), mask=inside & here)
    tl.store(h_last + row * D + column, h, mask=inside)
    tl.store(c_last + row * D + column, c, mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    gates, recurrent, resets, checkpoints, dh, dh_last, dc_last, dgates, parts, dh0, dc0, T, D, offset,
    K: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Replays a span from its checkpoint, then walks it back. resets, dh_last and dc_last may be None."""
    blocks = tl.cdiv(D, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    inside = column < D
    spans = tl.cdiv(T, K)
    r_i = tl.load(recurrent + column, mask=inside, other=0.0)
    r_f = tl.load(recurrent + D + column, mask=inside, other=0.0)
    r_z = tl.load(recurrent + 2 * D + column, mask=inside, other=0.0)
    r_o = tl.load(recurrent + 3 * D + column, mask=inside, other=0.0)
    dr_i = tl.zeros([BD], tl.float32)
    dr_f = tl.zeros([BD], tl.float32)
    dr_z = tl.zeros([BD], tl.float32)
    dr_o = tl.zeros([BD], tl.float32)
    carry_h = tl.zeros([BD], tl.float32)
    carry_c = tl.zeros([BD], tl.float32)
    if dh_last is not None:
        carry_h = tl.load(dh_last + row * D + column, mask=inside, other=0.0)
    if dc_last is not None:
        carry_c = tl.load(dc_last + row * D + column, mask=inside, other=0.0)
    for back in range(0, spans):
        span = spans - 1 - back
        first = row * T + span * K
        at = checkpoints + (row * spans + span) * (2 * D) + column
        h = tl.load(at, mask=inside, other=0.0)
        c = tl.load(at + D, mask=inside, other=0.0)
        i_pre, f_pre, z_pre, o_pre, dhs, starts = (), (), (), (), (), ()
        for k in tl.static_range(K):
            here = inside & (span * K + k + 0 * column < T)
            at = gates + (first + k) * (4 * D) + column
            i_pre = i_pre + (tl.load(at, mask=here, other=0.0),)
            f_pre = f_pre + (tl.load(at + D, mask=here, other=0.0),)
            z_pre = z_pre + (tl.load(at + 2 * D, mask=here, other=0.0),)
            o_pre = o_pre + (tl.load(at + 3 * D, mask=here, other=0.0),)
            dhs = dhs + (tl.load(dh + (first + k) * D + column, mask=here, other=0.0),)
            if resets is not None:
                starts = starts + (tl.load(resets + first + k, mask=span * K + k < T, other=0),)
        hs, cs = (), ()
        for k in tl.static_range(K):
            if resets is not None:
                h = tl.where(starts[k] != 0, 0.0, h)
                c = tl.where(starts[k] != 0, 0.0, c)
            hs = hs + (h,)
            cs = cs + (c,)
            i = sigmoid(i_pre[k].to(tl.float32) + r_i * h, FAST)
            f = sigmoid(f_pre[k].to(tl.float32) + r_f * h + offset, FAST)
            z = tanh(z_pre[k].to(tl.float32) + r_z * h, FAST)
            o = sigmoid(o_pre[k].to(tl.float32) + r_o * h, FAST)
            c = f * c + i * z
            h = o * tanh(c, FAST)
        for k in tl.static_range(K - 1, -1, -1):
            here = span * K + k + 0 * column < T
            i = sigmoid(i_pre[k].to(tl.float32) + r_i * hs[k], FAST)
            f = sigmoid(f_pre[k].to(tl.float32) + r_f * hs[k] + offset, FAST)
            z = tanh(z_pre[k].to(tl.float32) + r_z * hs[k], FAST)
            o = sigmoid(o_pre[k].to(tl.float32) + r_o * hs[k], FAST)
            tanh_c = tanh(f * cs[k] + i * z, FAST)
            d = tl.where(here, dhs[k].to(tl.float32) + carry_h, 0.0)
            dc = tl.where(here, carry_c + d * o * (1.0 - tanh_c * tanh_c), 0.0)
            d_i = dc * z * (i * (1.0 - i))
            d_f = dc * cs[k] * (f * (1.0 - f))
            d_z = dc * i * (1.0 - z * z)
            d_o = d * tanh_c * (o * (1.0 - o))
            at = dgates + (first + k) * (4 * D) + column
            element = dgates.dtype.element_ty
            tl.store(at, d_i.to(element), mask=inside & here)
            tl.store(at + D, d_f.to(element), mask=inside & here)
            tl.store(at + 2 * D, d_z.to(element), mask=inside & here)
            tl.store(at + 3 * D, d_o.to(element), mask=inside & here)
            dr_i += d_i * hs[k]
            dr_f += d_f * hs[k]
            dr_z += d_z * hs[k]
            dr_o += d_o * hs[k]
            h_next = r_i * d_i + r_f * d_f + r_z * d_z + r_o * d_o
            c_next = f * dc
            if resets is not None:
                h_next = tl.where(starts[k] != 0, 0.0, h_next)
                c_next = tl.where(starts[k] != 0, 0.0, c_next)
            carry_h = tl.where(here, h_next, carry_h)
            carry_c = tl.where(here, c_next, carry_c)
    at = parts + row * (4 * D) + column
    tl.store(at, dr_i, mask=inside)
    tl.store(at + D, dr_f, mask=inside)
    tl.store(at + 2 * D, dr_z, mask=inside)
    tl.store(at + 3 * D, dr_o, mask=inside)
    tl.store(dh0 + row * D + column, carry_h, mask=inside)
    tl.store(dc0 + row * D + column, carry_c, mask=inside)


def _launch(kernel: triton.runtime.JITFunction, gates: Tensor, *arguments: object) -> None:
    B, _, _, D = gates.shape
    columns = COLUMNS_PER_WARP * NUM_WARPS
    constants = {"K": SPAN, "BD": columns, "FAST": not interpreting()}
    launch(kernel, gates, B * triton.cdiv(D, columns), gates, *arguments, num_warps=NUM_WARPS, **constants)


def saved_shape(B: int, T: int, D: int) -> tuple[int, ...]:
    """Of what the backward needs besides its inputs: (h, c) before every span."""
    return B, triton.cdiv(T, SPAN), 2, D


def _bytes(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.view(torch.uint8)


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    saving: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, D], h_last and c_last [B, D], and the checkpoints of `saved_shape` (empty unless saving)."""
    B, T, _, D = gates.shape
    h, saved = gates.new_empty(B, T, D), gates.new_empty(saved_shape(B, T, D) if saving else 0, dtype=torch.float32)
    h_last, c_last = (gates.new_empty(B, D, dtype=torch.float32) for _ in range(2))
    kept = saved if saving else None
    _launch(forward_kernel, gates, recurrent, h0, c0, _bytes(resets), h, h_last, c_last, kept, T, D, forget_offset)
    return h, h_last, c_last, saved


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
    B, T, _, D = gates.shape
    dgates, parts = torch.empty_like(gates), gates.new_empty(B, 4 * D, dtype=torch.float32)
    drecurrent, dh0, dc0 = (gates.new_empty(n, D, dtype=torch.float32) for n in (4, B, B))
    inputs = (recurrent, _bytes(resets), saved, dh, dh_last, dc_last)
    _launch(backward_kernel, gates, *inputs, dgates, parts, dh0, dc0, T, D, forget_offset)
    add_up(parts, drecurrent, opaque=True)
    return dgates, drecurrent, dh0, dc0
