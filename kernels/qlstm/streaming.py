# mypy: disable-error-code="assignment"
"""Quasi-LSTM as two Triton kernels that stream rows: no shared memory, no barrier, one lane per few columns.

Letters: B rows, T steps, D width, N gate blocks (4: i, f, z, o; 3, coupled: f, z, o), K steps of a span, BD columns of
a program. A program owns BD columns of one row and walks over T. All loads of a span are issued before its first step,
so that enough bytes are under way; c is kept in fp32 registers and, when a backward follows, stored once per span.

Where B and D are small, T is cut into S segments, which are rows to the kernels: a first pass finds what each segment
does to a state that enters it (an affine map: multiply by the product of f, add), S small sums chain the maps, and the
second pass starts every segment from its true state. Importing this needs Triton.
(mypy: the tuples of a kernel grow while it is unrolled.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import approximate_sigmoid, approximate_tanh, sigmoid, tanh
from hotplate.kernels.launch import interpreting, launch
from hotplate.kernels.sums import add_up

SPAN = 8  # K; 16 spills in the backward
COLUMNS_PER_WARP = 64  # two per lane: a row's load fills a 128-byte line in 16 bits
# Fewer columns (B D) than this leave most of a GPU idle, and T is cut: a guess from the 3 MB that must be under way to
# fill 4 TB/s, not measured on a GPU.
FULL_COLUMNS = 1 << 15
MOST_SEGMENTS = 8
BACKWARD = {"maxnreg": 255}  # without it Triton 3.6 stops at 168 registers for compute capability 10, and spills
NUM_WARPS = 1  # programs are independent, and more of them hide more latency; not measured on a GPU


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    gates, c0, resets, h, c_last, checkpoints, product, T, D, offset,
    N: tl.constexpr, K: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """HALF: h is rounded to 16 bits, so o and tanh(c) may be approximate. c0, resets and checkpoints may be None.

    The first pass of segments gives product [B, D], filled with the product of f, in the place of h.
    """
    blocks = tl.cdiv(D, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    inside = column < D
    spans = tl.cdiv(T, K)
    c = tl.zeros([BD], tl.float32)
    if c0 is not None:
        c = tl.load(c0 + row * D + column, mask=inside, other=0.0)
    kept = tl.full([BD], 1.0, tl.float32)
    for span in range(0, spans):
        if checkpoints is not None:
            tl.store(checkpoints + (row * spans + span) * D + column, c, mask=inside)
        first = row * T + span * K
        g = gates + first * (N * D) + column
        i_pre, f_pre, z_pre, o_pre, starts = (), (), (), (), ()
        for k in tl.static_range(K):
            here = inside & (span * K + k + 0 * column < T)
            at = g + k * (N * D)
            if N == 4:
                i_pre = i_pre + (tl.load(at, mask=here, other=0.0),)
            f_pre = f_pre + (tl.load(at + (N - 3) * D, mask=here, other=0.0),)
            z_pre = z_pre + (tl.load(at + (N - 2) * D, mask=here, other=0.0),)
            if h is not None:
                o_pre = o_pre + (tl.load(at + (N - 1) * D, mask=here, other=0.0),)
            if resets is not None:
                starts = starts + (tl.load(resets + first + k, mask=span * K + k < T, other=0),)
        for k in tl.static_range(K):
            f = sigmoid(f_pre[k].to(tl.float32) + offset, FAST)
            i = sigmoid(i_pre[k].to(tl.float32), FAST) if N == 4 else 1.0 - f
            if resets is not None:
                c = tl.where(starts[k] != 0, 0.0, c)
            c_new = f * c + i * tanh(z_pre[k].to(tl.float32), FAST)
            here = span * K + k + 0 * column < T
            c = tl.where(here, c_new, c)
            if product is not None:
                if resets is not None:
                    f = tl.where(starts[k] != 0, 0.0, f)
                kept = tl.where(here, kept * f, kept)
            if h is not None:
                if HALF:
                    h_t = approximate_sigmoid(o_pre[k].to(tl.float32), FAST) * approximate_tanh(c, FAST)
                else:
                    h_t = sigmoid(o_pre[k].to(tl.float32), FAST) * tanh(c, FAST)
                tl.store(h + (first + k) * D + column, h_t.to(h.dtype.element_ty), mask=inside & here)
    if product is not None:
        tl.store(product + row * D + column, kept, mask=inside)
    tl.store(c_last + row * D + column, c, mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    gates, resets, checkpoints, dh, dc_last, dgates, dc0, product, parts, T, D, offset,
    N: tl.constexpr, K: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Replays a span from its checkpoint, then walks it back. resets, dc_last and parts may be None: parts [rows, N, D]
    are sums of dgates over T.

    The first pass of segments gives product [B, D], filled with the product of f, in the place of dgates.
    """
    blocks = tl.cdiv(D, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    inside = column < D
    spans = tl.cdiv(T, K)
    carry = tl.zeros([BD], tl.float32)  # f_{t+1} dc_{t+1}
    if dc_last is not None:
        carry = tl.load(dc_last + row * D + column, mask=inside, other=0.0)
    kept = tl.full([BD], 1.0, tl.float32)
    sum_i, sum_f = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    sum_z, sum_o = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    for back in range(0, spans):
        span = spans - 1 - back
        first = row * T + span * K
        g = gates + first * (N * D) + column
        c = tl.load(checkpoints + (row * spans + span) * D + column, mask=inside, other=0.0)
        i_pre, f_pre, z_pre, o_pre, dhs, starts, before = (), (), (), (), (), (), ()
        for k in tl.static_range(K):
            here = inside & (span * K + k + 0 * column < T)
            at = g + k * (N * D)
            if N == 4:
                i_pre = i_pre + (tl.load(at, mask=here, other=0.0),)
            f_pre = f_pre + (tl.load(at + (N - 3) * D, mask=here, other=0.0),)
            z_pre = z_pre + (tl.load(at + (N - 2) * D, mask=here, other=0.0),)
            o_pre = o_pre + (tl.load(at + (N - 1) * D, mask=here, other=0.0),)
            dhs = dhs + (tl.load(dh + (first + k) * D + column, mask=here, other=0.0),)
            if resets is not None:
                starts = starts + (tl.load(resets + first + k, mask=span * K + k < T, other=0),)
        for k in tl.static_range(K):
            if resets is not None:
                c = tl.where(starts[k] != 0, 0.0, c)
            before = before + (c,)
            f = sigmoid(f_pre[k].to(tl.float32) + offset, FAST)
            i = sigmoid(i_pre[k].to(tl.float32), FAST) if N == 4 else 1.0 - f
            c = f * c + i * tanh(z_pre[k].to(tl.float32), FAST)
        for k in tl.static_range(K - 1, -1, -1):
            f = sigmoid(f_pre[k].to(tl.float32) + offset, FAST)
            i = sigmoid(i_pre[k].to(tl.float32), FAST) if N == 4 else 1.0 - f
            z = tanh(z_pre[k].to(tl.float32), FAST)
            o = sigmoid(o_pre[k].to(tl.float32), FAST)
            tanh_c = tanh(f * before[k] + i * z, FAST)
            d = dhs[k].to(tl.float32)
            dc = carry + d * o * (1.0 - tanh_c * tanh_c)
            here = span * K + k + 0 * column < T
            if dgates is not None:
                at = dgates + first * (N * D) + k * (N * D) + column
                element = dgates.dtype.element_ty
                if N == 4:
                    da_i = dc * z * (i * (1.0 - i))
                    da_f = dc * before[k] * (f * (1.0 - f))
                    tl.store(at, da_i.to(element), mask=inside & here)
                    tl.store(at + D, da_f.to(element), mask=inside & here)
                else:
                    da_f = dc * (before[k] - z) * (f * i)
                    tl.store(at, da_f.to(element), mask=inside & here)
                da_z, da_o = dc * i * (1.0 - z * z), d * tanh_c * (o * (1.0 - o))
                tl.store(at + (N - 2) * D, da_z.to(element), mask=inside & here)
                tl.store(at + (N - 1) * D, da_o.to(element), mask=inside & here)
                if parts is not None:
                    if N == 4:
                        sum_i = tl.where(here, sum_i + da_i, sum_i)
                    sum_f = tl.where(here, sum_f + da_f, sum_f)
                    sum_z = tl.where(here, sum_z + da_z, sum_z)
                    sum_o = tl.where(here, sum_o + da_o, sum_o)
            next_carry = f * dc
            if resets is not None:
                next_carry = tl.where(starts[k] != 0, 0.0, next_carry)
            carry = tl.where(here, next_carry, carry)
            if product is not None:
                if resets is not None:
                    f = tl.where(starts[k] != 0, 0.0, f)
                kept = tl.where(here, kept * f, kept)
    if product is not None:
        tl.store(product + row * D + column, kept, mask=inside)
    tl.store(dc0 + row * D + column, carry, mask=inside)
    if parts is not None:
        at = parts + row * (N * D) + column
        if N == 4:
            tl.store(at, sum_i, mask=inside)
        tl.store(at + (N - 3) * D, sum_f, mask=inside)
        tl.store(at + (N - 2) * D, sum_z, mask=inside)
        tl.store(at + (N - 1) * D, sum_o, mask=inside)


def _launch(kernel: triton.runtime.JITFunction, gates: Tensor, *arguments: object, **constants: object) -> None:
    B, _, N, D = gates.shape
    columns = COLUMNS_PER_WARP * NUM_WARPS
    constants |= {"N": N, "K": SPAN, "BD": columns, "FAST": not interpreting()}
    launch(kernel, gates, B * triton.cdiv(D, columns), gates, *arguments, num_warps=NUM_WARPS, **constants)


def saved_shape(gates: Tensor) -> tuple[int, ...]:
    """Of what the backward needs besides its inputs: c before every span."""
    B, T, _, D = gates.shape
    return B, triton.cdiv(T, SPAN), D


def _bytes(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.view(torch.uint8)


def segments(B: int, T: int, D: int) -> int:
    """S: into how many equal parts of whole spans T is cut; a power of two, 1 where columns are many enough."""
    S = 1
    while 2 * S <= MOST_SEGMENTS and B * D * S < FULL_COLUMNS and T % (2 * S * SPAN) == 0:
        S *= 2
    return S


def _chained(start: Tensor | None, factors: Tensor, terms: Tensor, order: range) -> Tensor:
    """What enters each segment [B, S, D], for the maps x -> factor x + term, taken in `order`."""
    x = torch.zeros_like(terms[:, 0]) if start is None else start
    entering = torch.empty_like(terms)
    for s in order:
        entering[:, s] = x
        x = torch.addcmul(terms[:, s], factors[:, s], x)
    return entering


def forward(
    gates: Tensor, c0: Tensor | None, resets: Tensor | None, forget_offset: float, saving: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, T, D], c_last [B, D] and the checkpoints of `saved_shape` (empty unless saving)."""
    B, T, N, D = gates.shape
    S = segments(B, T, D)
    rows, starts = gates.view(B * S, T // S, N, D), _bytes(resets)
    h, c_last = gates.new_empty(B, T, D), gates.new_empty(B, S, D, dtype=torch.float32)
    checkpoints = gates.new_empty(saved_shape(gates) if saving else 0, dtype=torch.float32)
    kept, last = checkpoints if saving else None, {"HALF": gates.dtype != torch.float32}
    sizes = T // S, D, forget_offset
    if S > 1:
        product = torch.empty_like(c_last)
        _launch(forward_kernel, rows, None, starts, None, c_last, None, product, *sizes, **last)
        c0 = _chained(c0, product, c_last, range(S))
    _launch(forward_kernel, rows, c0, starts, h, c_last, kept, None, *sizes, **last)
    return h, c_last[:, -1].clone(), checkpoints


def backward(
    dh: Tensor,
    dc_last: Tensor | None,
    gates: Tensor,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
    dbias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dgates like gates, dc0 [B, D]; fills dbias [N, D], of numbers side by side."""
    B, T, N, D = gates.shape
    S = segments(B, T, D)
    rows, starts = gates.view(B * S, T // S, N, D), _bytes(resets)
    dgates, dc0 = torch.empty_like(gates), gates.new_empty(B, S, D, dtype=torch.float32)
    parts = None if dbias is None else gates.new_empty(B * S, N * D, dtype=torch.float32)
    sizes = T // S, D, forget_offset
    if S > 1:
        product = torch.empty_like(dc0)
        _launch(backward_kernel, rows, starts, saved, dh, None, None, dc0, product, None, *sizes, **BACKWARD)
        dc_last = _chained(dc_last, product, dc0, range(S - 1, -1, -1))
    _launch(backward_kernel, rows, starts, saved, dh, dc_last, dgates, dc0, None, parts, *sizes, **BACKWARD)
    if dbias is not None and parts is not None:
        add_up(parts, dbias, opaque=True)
    return dgates, dc0[:, 0].clone()
