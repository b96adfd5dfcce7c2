"""Loss and gradient of a chunk's logits as one Triton kernel, between the products of cuBLAS.

Letters: C rows of the chunk, V vocabulary, R rows and BV logits of a program's block. Up to ONE_TILE ids a program
holds whole rows, several where they are short, and reads them once; beyond, it walks over one row twice: the second
reading comes from the cache where the row still is in it. 16-bit operands of the products that follow are written to a
buffer of their own; fp32 gradients take the logits' place. A row is loaded and stored up to its stride, a multiple of
16, so that loads are wide for any V; what lies between V and the stride is nobody's. Importing this needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import tanh
from hotplate.kernels.cross_entropy.reference import Loss
from hotplate.kernels.launch import interpreting, launch, power_of_2

ONE_TILE = 4096  # ids: 16 per lane of eight warps
TILE_LOGITS = 2048  # of a program's block where rows are short
BLOCK_LOGITS = 2048  # of a step over a longer row: 4096 spills in Triton 3.6 on sm_100


@triton.jit
def _shaped(raw, scale, cap, CAPPED: tl.constexpr, FAST: tl.constexpr):
    """The logit after scale and cap."""
    x = raw * scale
    if CAPPED:
        x = cap * tanh(x / cap, FAST)
    return x


@triton.jit
def _gradient(x, is_target, factor, lse, V, scale, cap, smoothing, z, CAPPED: tl.constexpr):
    """d loss / d raw logit, times the row's factor; exactly 0 where that is 0."""
    p = tl.exp(x - lse) * (1.0 + 2.0 * z * lse)
    d = p - smoothing / V - tl.where(is_target, 1.0 - smoothing, 0.0)
    if CAPPED:
        d = d * (1.0 - (x / cap) * (x / cap))
    return tl.where(factor == 0.0, 0.0, d * factor * scale)


@triton.jit
def tile_kernel(
    logits, out, targets, factors, losses, lse, C, V, stride, scale, cap, smoothing, z,
    KNOWN: tl.constexpr, CAPPED: tl.constexpr, FAST: tl.constexpr, R: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Whole rows in registers. factors may be None: no gradient then. KNOWN: lse is read, losses are not written."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    v = tl.arange(0, BV)
    whole = (row < C)[:, None] & (v < stride)[None, :]
    inside = (row < C)[:, None] & (v < V)[None, :]
    at = row[:, None] * stride + v[None, :]
    is_target = v[None, :] == tl.load(targets + row, mask=row < C, other=0)[:, None]
    x = _shaped(tl.load(logits + at, mask=whole, other=0.0), scale, cap, CAPPED, FAST)
    if KNOWN:
        normaliser = tl.load(lse + row, mask=row < C, other=0.0)
    else:
        top = tl.max(tl.where(inside, x, float("-inf")), 1)
        top = tl.where(row < C, top, 0.0)
        rest = tl.log(tl.sum(tl.where(inside, tl.exp(x - top[:, None]), 0.0), 1))
        normaliser = top + rest
        of_target = tl.sum(tl.where(is_target & inside, x, 0.0), 1)
        mean = tl.sum(tl.where(inside, x, 0.0), 1) / V
        of_row = top - of_target + rest + smoothing * (of_target - mean) + z * normaliser * normaliser
        tl.store(lse + row, normaliser, mask=row < C)
        tl.store(losses + row, of_row, mask=row < C)
    if factors is not None:
        factor = tl.load(factors + row, mask=row < C, other=0.0)[:, None]
        d = _gradient(x, is_target, factor, normaliser[:, None], V, scale, cap, smoothing, z, CAPPED)
        tl.store(out + at, d.to(out.dtype.element_ty), mask=whole)


@triton.jit
def row_kernel(
    logits, out, targets, factors, losses, lse, V, stride, scale, cap, smoothing, z,
    KNOWN: tl.constexpr, CAPPED: tl.constexpr, FAST: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One row in steps of BV. factors may be None: no gradient then. KNOWN: lse is read, losses are not written."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    v = tl.arange(0, BV)
    if KNOWN:
        normaliser = tl.load(lse + row)
    else:
        top = tl.full([BV], float("-inf"), tl.float32)  # each lane sums on its own; they meet after the row
        total = tl.zeros([BV], tl.float32)
        added = tl.zeros([BV], tl.float32)
        of_target = _shaped(tl.load(logits + row * stride + target), scale, cap, CAPPED, FAST)
        for first in range(0, V, BV):
            inside = first + v < V
            raw = tl.load(logits + row * stride + first + v, mask=first + v < stride, other=0.0)
            x = _shaped(raw, scale, cap, CAPPED, FAST)
            added += tl.where(inside, x, 0.0)
            x = tl.where(inside, x, float("-inf"))
            higher = tl.maximum(top, x)
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(top - base) + tl.exp(x - base)
            top = higher
        highest = tl.max(top, 0)
        rest = tl.log(tl.sum(total * tl.exp(top - highest), 0))
        normaliser = highest + rest
        mean = tl.sum(added, 0) / V
        of_row = highest - of_target + rest + smoothing * (of_target - mean) + z * normaliser * normaliser
        tl.store(lse + row, normaliser)
        tl.store(losses + row, of_row)
    if factors is not None:
        factor = tl.load(factors + row)
        tl.debug_barrier()  # the target's logit has been read by every lane before its place is overwritten
        for first in range(0, V, BV):
            whole = first + v < stride
            at = row * stride + first + v
            x = _shaped(tl.load(logits + at, mask=whole, other=0.0), scale, cap, CAPPED, FAST)
            d = _gradient(x, first + v == target, factor, normaliser, V, scale, cap, smoothing, z, CAPPED)
            tl.store(out + at, d.to(out.dtype.element_ty), mask=whole)


def tile(V: int) -> tuple[int, int, int]:
    """R, BV and warps of tile_kernel."""
    BV = max(16, power_of_2(V))
    return max(1, TILE_LOGITS // BV), BV, 8 if BV > TILE_LOGITS else 4


def rows(
    logits: Tensor,
    targets: Tensor,
    factors: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    known: bool,
    loss: Loss,
    dtype: torch.dtype,
) -> Tensor:
    """Fills losses and lse [C], unless lse is known; returns the gradient in `dtype` where there are factors [C]."""
    C, V = logits.shape
    stride = logits.stride(0)
    out = (
        logits
        if dtype == logits.dtype or factors is None
        else torch.empty_strided((C, V), (stride, 1), dtype=dtype, device=logits.device)
    )
    numbers = loss.scale, loss.cap, loss.smoothing, loss.z
    flags = {"KNOWN": known, "CAPPED": loss.cap > 0, "FAST": not interpreting()}
    tensors = logits, out, targets, factors, losses, lse
    if V <= ONE_TILE:
        R, BV, warps = tile(V)
        programs = triton.cdiv(C, R)
        launch(tile_kernel, logits, programs, *tensors, C, V, stride, *numbers, num_warps=warps, R=R, BV=BV, **flags)
    else:
        launch(row_kernel, logits, C, *tensors, V, stride, *numbers, num_warps=8, BV=BLOCK_LOGITS, **flags)
    return out
