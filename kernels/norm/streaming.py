"""The norm as Triton kernels, visible to torch.compile (torch.library.triton_op). Tensors come contiguous.

Letters: M rows, D features, R rows of a program's step, BD columns of its block, S stripes. A program holds whole rows
in registers: a row is read once. The backward's programs each walk over every S-th step and own one partial sum of the
weight's gradient: no atomics, so runs repeat bit for bit. Importing this needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.launch import power_of_2, wrap_triton
from hotplate.kernels.norm import autograd
from hotplate.kernels.sums import add_up

STEP_VALUES = 1024  # of a program's step where rows are short: 8 per lane of four warps
STRIPES = 512  # backward programs: a few per processor of any GPU; a guess, not measured on a GPU


@triton.jit
def forward_kernel(
    x, residual, weight, bias, total, y, statistics, M, D, eps: tl.constexpr, R: tl.constexpr, BD: tl.constexpr
):
    """residual and total may be None together; with bias the rows are centred."""
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    d = tl.arange(0, BD)
    inside = (rows < M)[:, None] & (d < D)[None, :]
    at = rows[:, None] * D + d[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        rounded = v.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        v = rounded.to(tl.float32)
    if bias is not None:
        mean = tl.sum(v, 1) / D
        tl.store(statistics + M + rows, mean, mask=rows < M)
        v = tl.where(inside, v - mean[:, None], 0.0)
    r = 1.0 / tl.sqrt(tl.sum(v * v, 1) / D + eps)
    tl.store(statistics + rows, r, mask=rows < M)
    out = v * r[:, None] * tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        out += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dy, dtotal, total, weight, statistics, dx, dweight, dbias, M, D, S, R: tl.constexpr, BD: tl.constexpr
):
    """dtotal may be None; with dbias the rows are centred."""
    stripe = tl.program_id(0)
    d = tl.arange(0, BD)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    weight_sum = tl.zeros([R, BD], tl.float32)
    bias_sum = tl.zeros([R, BD], tl.float32)
    for step in range(stripe, tl.cdiv(M, R), S):
        rows = (step * R + tl.arange(0, R)).to(tl.int64)
        inside = (rows < M)[:, None] & (d < D)[None, :]
        at = rows[:, None] * D + d[None, :]
        arriving = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        xhat = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(statistics + rows, mask=rows < M, other=0.0)[:, None]
        g = arriving * w
        if dbias is not None:
            xhat = xhat - tl.load(statistics + M + rows, mask=rows < M, other=0.0)[:, None]
            bias_sum += arriving
        xhat = tl.where(inside, xhat * r, 0.0)
        weight_sum += arriving * xhat
        out = g - xhat * (tl.sum(xhat * g, 1) / D)[:, None]
        if dbias is not None:
            out -= (tl.sum(g, 1) / D)[:, None]
        out = out * r
        if dtotal is not None:
            out += tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, out.to(dx.dtype.element_ty), mask=inside)
    own = stripe.to(tl.int64) * D + d
    tl.store(dweight + own, tl.sum(weight_sum, 0), mask=d < D)
    if dbias is not None:
        tl.store(dbias + own, tl.sum(bias_sum, 0), mask=d < D)


def blocks(D: int) -> tuple[int, int, int]:
    """R, BD and warps: 8 values per lane, 16 of the longest rows: the backward keeps six blocks in registers."""
    BD = max(16, power_of_2(D))
    return max(1, STEP_VALUES // BD), BD, min(16, max(4, BD // 256))


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y [M, D], the sum [M, D] (empty without a residual) and the statistics fp32 [1 or 2, M]: rstd, mean."""
    M, D = x.shape
    y, total = torch.empty_like(x), x.new_empty(x.shape if residual is not None else (0,))
    statistics = x.new_empty(1 if bias is None else 2, M, dtype=torch.float32)
    R, BD, warps = blocks(D)
    if M:
        into = None if residual is None else total
        wrap_triton(forward_kernel)[(triton.cdiv(M, R),)](
            x, residual, weight, bias, into, y, statistics, M, D, eps, R=R, BD=BD, num_warps=warps
        )
    return y, total, statistics


def backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx [M, D]; dweight and dbias [D] in the dtypes of weight and bias, dbias empty without a bias."""
    M, D = total.shape
    R, BD, warps = blocks(D)
    S = min(STRIPES, triton.cdiv(M, R))
    dx, dweight = torch.empty_like(total), weight.new_empty(D)
    dbias = None if bias is None else bias.new_empty(D)
    weight_parts = total.new_empty(S, D, dtype=torch.float32)
    bias_parts = None if bias is None else torch.empty_like(weight_parts)
    if M:
        wrap_triton(backward_kernel)[(S,)](
            dy, dtotal, total, weight, statistics, dx, weight_parts, bias_parts, M, D, S, R=R, BD=BD, num_warps=warps
        )
    add_up(weight_parts, dweight, bias_parts, dbias)
    return dx, dweight, dweight.new_empty(0) if dbias is None else dbias


operator = torch.library.triton_op("hotplate::norm", forward, mutates_args=())
backward_operator = torch.library.triton_op("hotplate::norm_backward", backward, mutates_args=())
torch.library.register_autograd("hotplate::norm", autograd.derivative(backward_operator), setup_context=autograd.setup)
