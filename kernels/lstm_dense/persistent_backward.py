"""The dense LSTM backward as one Triton kernel for all steps; each program keeps DS rows of every gate's matrix.

Letters: B rows, T steps, D width, DS columns of dh that a program makes, BB rows of a group, G = D / DS programs of a
group, S parts of a sum over 4 D terms, PIECE terms of a part in one product. Importing this needs Triton.

The grid, the flags and the launch are those of persistent.py. What the programs exchange is da of the step after, all
4 D columns of it, and the place where they do is dgates itself. A sum over 4 D terms makes only DS x BB numbers: it is
cut into S parts, one per warp. What multiplies dh and dc is made for all steps beforehand (coefficients_kernel), so
that the loop has products and sums only.
"""

import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import sigmoid, tanh
from hotplate.kernels.launch import interpreting
from hotplate.kernels.lstm_dense.exchange import FLAGS, ROWS, SLICE, WARPS, announce, await_step, new_flags
from hotplate.kernels.lstm_dense.steps import preactivation

PARTS = 8  # S: one per warp
COLUMNS = 256  # of a program of coefficients_kernel


@triton.jit
def coefficients_kernel(product, gates, cells, others, B, T, D, offset, BD: tl.constexpr, FAST: tl.constexpr):
    """product [B, T, 4, D], with gates the pre-activations, becomes da / (dc, dc, dc, dh); others [B, T, 2, D] receives
    o (1 - tanh(c)^2) and f. fp32 but for gates."""
    pair = tl.program_id(0).to(tl.int64)
    row, t = pair // T, pair % T
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = column < D
    place = pair * 4 * D + column
    i = sigmoid(preactivation(product, gates, place, inside), FAST)
    f = sigmoid(preactivation(product, gates, place + D, inside) + offset, FAST)
    z = tanh(preactivation(product, gates, place + 2 * D, inside), FAST)
    o = sigmoid(preactivation(product, gates, place + 3 * D, inside), FAST)
    at = product + place
    c_before = tl.load(cells + (t * B + row) * D + column, mask=inside, other=0.0)
    tanh_c = tanh(f * c_before + i * z, FAST)
    tl.store(at, z * (i * (1.0 - i)), mask=inside)
    tl.store(at + D, c_before * (f * (1.0 - f)), mask=inside)
    tl.store(at + 2 * D, i * (1.0 - z * z), mask=inside)
    tl.store(at + 3 * D, tanh_c * (o * (1.0 - o)), mask=inside)
    to = others + pair * 2 * D + column
    tl.store(to, o * (1.0 - tanh_c * tanh_c), mask=inside)
    tl.store(to + D, f, mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    coefficients, others, recurrent, keep, dh, dh_last, dc_last, flags, dgates, dc0, T, B, dh_row, dh_step,
    D: tl.constexpr, DS: tl.constexpr, BB: tl.constexpr, G: tl.constexpr, S: tl.constexpr, PIECE: tl.constexpr,
    FLAGS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """keep [B, T + 1], dh_last and dc_last [B, D] may be None; flags [groups, FLAGS] zeros; dgates [B, T, 4, D].

    A part of the sum lies within one gate: S is a multiple of 4.
    """
    part = tl.program_id(0)
    block = tl.program_id(1) * BB
    own = part * DS + tl.arange(0, DS)
    share: tl.constexpr = 4 * D // S
    s, piece = tl.arange(0, S), tl.arange(0, PIECE)
    first_term = s // (S // 4) * D * D + s % (S // 4) * share
    matrices = ()
    for n in tl.static_range(share // PIECE):
        cut = recurrent + first_term[:, None, None] + (own * D)[None, :, None] + (n * PIECE + piece)[None, None, :]
        matrices = matrices + (tl.load(cut),)  # type: ignore[assignment]
    # Of one number each per lane, columns of a row beside each other.
    row = block + tl.arange(0, BB * DS) // DS
    column = part * DS + tl.arange(0, BB * DS) % DS
    inside = row < B
    state = row * D + column
    dh_now = tl.zeros([BB * DS], tl.float32)
    dc = tl.zeros([BB * DS], tl.float32)
    if dh_last is not None:
        dh_now = tl.load(dh_last + state, mask=inside, other=0.0)
    if dc_last is not None:
        dc = tl.load(dc_last + state, mask=inside, other=0.0)
    group = flags + tl.program_id(1) * FLAGS
    term = (s * share)[:, None, None] + piece[None, :, None]
    operand_row = block + tl.arange(0, BB)[None, None, :]
    operand = dgates + operand_row.to(tl.int64) * T * (4 * D) + term
    first = row.to(tl.int64) * T
    out = dh + row.to(tl.int64) * dh_row + column
    for back in range(0, T):
        t = T - 1 - back
        at = coefficients + (first + t) * (4 * D) + column
        a_i = tl.load(at, mask=inside, other=0.0)
        a_f = tl.load(at + D, mask=inside, other=0.0)
        a_z = tl.load(at + 2 * D, mask=inside, other=0.0)
        a_o = tl.load(at + 3 * D, mask=inside, other=0.0)
        other = others + (first + t) * (2 * D) + column
        dc_per_dh = tl.load(other, mask=inside, other=0.0)
        f = tl.load(other + D, mask=inside, other=0.0)
        arriving = tl.load(out + tl.cast(t, tl.int64) * dh_step, mask=inside, other=0.0).to(tl.float32)
        await_step(group, back, G, FLAGS)
        total = tl.zeros([S, DS, BB], tl.float32)
        after = operand + tl.cast(t + 1, tl.int64) * (4 * D)
        ready = (operand_row < B) & (back + 0 * term > 0)
        for n in tl.static_range(share // PIECE):
            da = tl.load(after + n * PIECE, mask=ready, other=0.0, cache_modifier=".cg")
            if UPCAST:
                total += tl.dot(matrices[n].to(tl.float32), da.to(tl.float32), input_precision="ieee")
            else:
                total = tl.dot(matrices[n], da, total)
        product = tl.reshape(tl.trans(tl.sum(total, axis=0)), [BB * DS])
        if keep is not None:
            kept = tl.load(keep + row * (T + 1) + t + 1, mask=inside, other=0.0)
            product = tl.where(kept != 0.0, product, 0.0)
            dc = tl.where(kept != 0.0, dc, 0.0)
        dh_now += arriving + product  # dh_last in the first step, 0 in the others
        dc += dh_now * dc_per_dh
        to = dgates + (first + t) * (4 * D) + column
        element = dgates.dtype.element_ty
        tl.store(to, (dc * a_i).to(element), mask=inside)
        tl.store(to + D, (dc * a_f).to(element), mask=inside)
        tl.store(to + 2 * D, (dc * a_z).to(element), mask=inside)
        tl.store(to + 3 * D, (dh_now * a_o).to(element), mask=inside)
        announce(group, part, G, FLAGS)
        dc = dc * f
        dh_now = tl.zeros([BB * DS], tl.float32)
    tl.store(dc0 + state, dc, mask=inside)


def piece(D: int) -> int:
    """The largest power of two that divides a part of the sum, 256 at the most, 64 beyond 1280: longer do not fit."""
    share = 4 * D // PARTS
    return min(share & -share, 256 if D <= 1280 else 64)


def walk_back(
    product: Tensor, gates: Tensor, cells: Tensor, matrix: Tensor, keep: Tensor | None, dh: Tensor,
    dh_last: Tensor | None, dc_last: Tensor | None, dgates: Tensor, forget_offset: float,
) -> Tensor:  # fmt: skip
    """dc0 [B, D], unmasked at step 0, of as many rows as fit one launch; fills dgates [B, T, 4, D], destroys product.

    product [B, T, 4, D] fp32 and gates, of one layout; cells [T + 1, B, D]; matrix [4, D, D]; keep [B, T + 1];
    dh [B, T, D], last axis contiguous.
    """
    B, T, _, D = product.shape
    others, dc0 = product.new_empty(B, T, 2, D), product.new_empty(B, D)
    coefficients_kernel[(B * T, triton.cdiv(D, COLUMNS))](
        product, gates, cells, others, B, T, D, forget_offset, BD=COLUMNS, FAST=not interpreting(), num_warps=4
    )
    groups, G = triton.cdiv(B, ROWS), D // SLICE
    backward_kernel[(G, groups)](
        product, others, matrix, keep, dh, dh_last, dc_last, new_flags(groups, product.device), dgates, dc0, T, B,
        *dh.stride()[:2], D=D, DS=SLICE, BB=ROWS, G=G, S=PARTS, PIECE=piece(D), FLAGS=FLAGS, UPCAST=interpreting(),
        num_warps=WARPS, launch_cooperative_grid=G > 1,
    )  # fmt: skip
    return dc0
