"""The dense LSTM step by step: a product by torch and one fused Triton kernel per step. Any width, any number of rows.

Letters: B rows, T steps, D width, BD columns of a program. Importing this needs Triton.
"""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import sigmoid, tanh
from hotplate.kernels.launch import interpreting
from hotplate.kernels.recurrence.autograd import Form, Shapes, before_each_step, recurrent_gradient

COLUMNS = 256  # BD: two per lane of four warps
WARPS = 4


@triton.jit
def forward_step(
    gates, product, keep, c, operand, h, c_next, D, row_stride, gate_stride, h_stride, keep_stride, offset,
    BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """gates, h and keep point at this step (keep, which may be None, at the next). operand: what h multiplies next."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = column < D
    x = gates + row.to(tl.int64) * row_stride + column
    p = product + row * (4 * D) + column
    i = tl.load(x, mask=inside, other=0.0).to(tl.float32) + tl.load(p, mask=inside, other=0.0)
    f = tl.load(x + gate_stride, mask=inside, other=0.0).to(tl.float32) + tl.load(p + D, mask=inside, other=0.0)
    z = tl.load(x + 2 * gate_stride, mask=inside, other=0.0).to(tl.float32) + tl.load(p + 2 * D, mask=inside, other=0.0)
    o = tl.load(x + 3 * gate_stride, mask=inside, other=0.0).to(tl.float32) + tl.load(p + 3 * D, mask=inside, other=0.0)
    c_now = sigmoid(f + offset, FAST) * tl.load(c + row * D + column, mask=inside, other=0.0)
    c_now += sigmoid(i, FAST) * tanh(z, FAST)
    h_now = sigmoid(o, FAST) * tanh(c_now, FAST)
    tl.store(h + row.to(tl.int64) * h_stride + column, h_now.to(h.dtype.element_ty), mask=inside)
    if keep is not None:
        kept = tl.load(keep + row * keep_stride) != 0.0  # a product with 0 would let a NaN through
        c_now = tl.where(kept, c_now, 0.0)
        h_now = tl.where(kept, h_now, 0.0)
    tl.store(c_next + row * D + column, c_now, mask=inside)
    tl.store(operand + row * D + column, h_now.to(operand.dtype.element_ty), mask=inside)


@triton.jit
def preactivation(product, gates, at, inside):
    """Of one gate: its part of h R, fp32, and the projection of the input."""
    wide = tl.load(product + at, mask=inside, other=0.0)
    return wide + tl.load(gates + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def backward_step(
    product, gates, c, keep, dh_out, dh, dc, dgates, operand, D, pre_stride, dh_stride, keep_stride, offset,
    BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Pre-activations are product [B, ., 4, D] fp32 and gates, of the same places. keep, which may be None, points at
    the next step, whose dh and dc arrive unmasked. dc is replaced."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = column < D
    at = row.to(tl.int64) * pre_stride + column
    i = sigmoid(preactivation(product, gates, at, inside), FAST)
    f = sigmoid(preactivation(product, gates, at + D, inside) + offset, FAST)
    z = tanh(preactivation(product, gates, at + 2 * D, inside), FAST)
    o = sigmoid(preactivation(product, gates, at + 3 * D, inside), FAST)
    c_before = tl.load(c + row * D + column, mask=inside, other=0.0)
    tanh_c = tanh(f * c_before + i * z, FAST)
    dh_now = tl.load(dh + row * D + column, mask=inside, other=0.0)
    dc_now = tl.load(dc + row * D + column, mask=inside, other=0.0)
    if keep is not None:
        kept = tl.load(keep + row * keep_stride) != 0.0
        dh_now = tl.where(kept, dh_now, 0.0)
        dc_now = tl.where(kept, dc_now, 0.0)
    dh_now += tl.load(dh_out + row.to(tl.int64) * dh_stride + column, mask=inside, other=0.0).to(tl.float32)
    dc_now += dh_now * o * (1.0 - tanh_c * tanh_c)
    da_i = (dc_now * z * i * (1.0 - i)).to(operand.dtype.element_ty)
    da_f = (dc_now * c_before * f * (1.0 - f)).to(operand.dtype.element_ty)
    da_z = (dc_now * i * (1.0 - z * z)).to(operand.dtype.element_ty)
    da_o = (dh_now * tanh_c * o * (1.0 - o)).to(operand.dtype.element_ty)
    to = operand + row * (4 * D) + column
    tl.store(dgates + at, da_i, mask=inside)
    tl.store(dgates + at + D, da_f, mask=inside)
    tl.store(dgates + at + 2 * D, da_z, mask=inside)
    tl.store(dgates + at + 3 * D, da_o, mask=inside)
    tl.store(to, da_i, mask=inside)
    tl.store(to + D, da_f, mask=inside)
    tl.store(to + 2 * D, da_z, mask=inside)
    tl.store(to + 3 * D, da_o, mask=inside)
    tl.store(dc + row * D + column, dc_now * f, mask=inside)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """fp32 sums of 16-bit or fp32 operands, not rounded to 16 bits on the way out."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def keeping(resets: Tensor | None) -> Tensor | None:
    """[B, T + 1] fp32: 0 where a document starts; nothing starts after the last step."""
    return None if resets is None else torch.nn.functional.pad((~resets).float(), (0, 1), value=1.0)


def _each_keep(resets: Tensor | None, T: int) -> Sequence[Tensor | None]:
    """Columns of `keeping`, with the stride of T + 1."""
    keep = keeping(resets)
    return [None] * (T + 1) if keep is None else keep.unbind(1)


def empty_first(states: Sequence[Tensor], resets: Tensor | None) -> None:
    """Replaces by 0 the rows of states [B, D] that step 0 resets."""
    if resets is not None:
        for state in states:
            state.masked_fill_(resets[:, :1], 0)


def _matrix(recurrent: Tensor, dtype: torch.dtype) -> Tensor:
    """[4, 1, D, D] -> [D, 4 D]."""
    return recurrent[:, 0].to(dtype).permute(1, 0, 2).flatten(1)


def kept(B: int, T: int, H: int, K: int) -> Shapes:
    """Cells that each step starts from, and the last."""
    return (T + 1, B, H * K), (0,)


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, _, _, D = gates.shape
    x = gates if gates.stride(-1) == 1 else gates.contiguous()
    matrix, keeps = _matrix(recurrent, gates.dtype), _each_keep(resets, T)
    h = gates.new_empty(B, T, 1, D)
    c = gates.new_empty(T + 1, B, D, dtype=torch.float32)
    operand = gates.new_zeros(B, D) if h0 is None else h0[:, 0].to(gates.dtype, copy=True)
    c[0] = 0 if c0 is None else c0[:, 0]
    empty_first((operand, c[0]), resets)
    grid = (B, triton.cdiv(D, COLUMNS))
    for t in range(T):
        forward_step[grid](
            x[:, t], _product(operand, matrix), keeps[t + 1], c[t], operand, h[:, t], c[t + 1], D, x.stride(0),
            x.stride(2), T * D, T + 1, forget_offset, BD=COLUMNS, FAST=not interpreting(), num_warps=WARPS,
        )  # fmt: skip
    return h, operand.float()[:, None], c[T][:, None].clone(), c if keep else c.new_empty(0), c.new_empty(0)


def walk_back(
    product: Tensor,
    gates: Tensor,
    c: Tensor,
    recurrent: Tensor,
    resets: Tensor | None,
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dgates: Tensor,
    forget_offset: float,
) -> Tensor:
    """dc0 [B, D], not yet emptied by step 0; fills dgates [B, T, 4, D] from dh [B, T, D] and pre-activations: product
    fp32 and gates [B, T, 4, D], both contiguous."""
    B, T, _, D = product.shape
    transposed, keeps = _matrix(recurrent, dgates.dtype).mT, _each_keep(resets, T)
    operand = dgates.new_empty(B, 4 * D)
    dh_now, dc = (
        c.new_zeros(B, D) if state is None else state.clone(memory_format=torch.contiguous_format)
        for state in (dh_last, dc_last)
    )
    for t in range(T - 1, -1, -1):
        if t < T - 1:
            dh_now = _product(operand, transposed)
        backward_step[(B, triton.cdiv(D, COLUMNS))](
            product[:, t], gates[:, t], c[t], keeps[t + 1], dh[:, t], dh_now, dc, dgates[:, t], operand, D, T * 4 * D,
            dh.stride(0), T + 1, forget_offset, BD=COLUMNS, FAST=not interpreting(), num_warps=WARPS,
        )  # fmt: skip
    return dc


def backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    h: Tensor,
    c: Tensor,
    second: Tensor,
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    *,
    walk: Callable[..., Tensor] = walk_back,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is parallel over steps: pre-activations before the walk back, products with R and h after it."""
    B, T, _, D = h.shape
    matrix = _matrix(recurrent, h.dtype)
    before = before_each_step(h, h0, resets, h.dtype)
    product = _product(before.view(B * T, D), matrix).view(B, T, 4, D)
    arriving = dh if dh.stride(-1) == 1 else dh.contiguous()
    dgates = h.new_empty(B, T, 4, D)
    last = (None if state is None else state[:, 0].contiguous() for state in (dh_last, dc_last))
    places = product, gates[:, :, :, 0].contiguous()
    dc0 = walk(*places, c, recurrent, resets, arriving[:, :, 0], *last, dgates, forget_offset)
    dh0 = _product(dgates[:, 0].reshape(B, 4 * D), matrix.mT)
    empty_first((dh0, dc0), resets)
    dgates = dgates[:, :, :, None]
    return dgates, recurrent_gradient(before, dgates, recurrent), dh0[:, None], dc0[:, None]


FORM = Form(forward, backward, kept, needs_gates=True)
