"""What a backward pass of the multi-head LSTM does for all steps at once, from h as the forward stored it: all
pre-activations before the walk back, and after it the gradients of the matrices and of a bias, in one pass over h and
dgates. Importing this needs Triton.

    dR_g = sum over rows and steps of (k_t h_{t-1})^T da_g        db_g = sum over rows and steps of da_g

As a batched product of torch's, dR would need k_t h_{t-1} and dgates by heads, two copies of what is read here where it
lies. Its program owns one gate of a head and takes every S-th block of (row, step) pairs: no atomics, so runs repeat
bit for bit.

Letters: B rows, T steps, H heads, K head width, W that width padded to a block, R recurrent matrices (H, or 1 shared),
BM (row, step) pairs of a block, S stripes of blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.launch import interpreting, launch, power_of_2
from hotplate.kernels.sums import add_up

PROGRAMS = 512  # a few per processor of any GPU: more would write more parts; not timed
PAIRS = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 16}  # BM; 64 pairs in fp32 spill
PAIR_WARPS = 8  # of preactivations_kernel: four spill on compute capability 10 under Triton 3.6
STAGES = {torch.bfloat16: 3, torch.float16: 3, torch.float32: 1}


@triton.jit
def product(left, right, UPCAST: tl.constexpr):
    """UPCAST: the interpreter multiplies the bits of bfloat16 as integers."""
    if UPCAST:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def states_before(h, h0, keep, pair, T, B, H, K, head, k):
    """k_t h_{t-1} [BM, W] of pairs (row, t) = divmod(pair, T), from h as the forward stored it; h0 is of its dtype."""
    row = pair // T
    t = pair % T
    inside = (row < B)[:, None] & (k < K)[None, :]
    at = h + (pair - 1)[:, None] * (H * K) + head * K + k[None, :]
    if h0 is not None:  # one load for both: a second would bring, and keep, as much again
        at = tl.where((t == 0)[:, None], h0 + row[:, None] * (H * K) + head * K + k[None, :], at)
    else:
        inside = inside & (t > 0)[:, None]
    before = tl.load(at, mask=inside, other=0.0)
    if keep is not None:
        kept = tl.load(keep + pair + row, mask=row < B, other=0.0)[:, None]
        before = tl.where(kept != 0.0, before.to(tl.float32), 0.0).to(h.dtype.element_ty)
    return before


@triton.jit(do_not_specialize=["T"])
def preactivations_kernel(
    gates, recurrent, h0, keep, h, pre, T, B, H, R, K, row_stride, step_stride, gate_stride, head_stride,
    W: tl.constexpr, BM: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """pre [B, T, 4, H, K] = gates + (k_t h_{t-1}) R, from h as the forward stored it."""
    head = tl.program_id(1)
    gate = tl.program_id(2)
    pair = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    row = pair // T
    t = pair % T
    k = tl.arange(0, W)
    inside = (row < B)[:, None] & (k < K)[None, :]
    before = states_before(h, h0, keep, pair, T, B, H, K, head, k)
    a, b = k[:, None], k[None, :]
    matrix = tl.load(recurrent + (gate * R + head % R) * K * K + a * K + b, mask=(a < K) & (b < K), other=0.0)
    x = gates + row[:, None] * row_stride + t[:, None] * step_stride + gate * gate_stride + head * head_stride + b
    total = product(before, matrix, UPCAST) + tl.load(x, mask=inside, other=0.0).to(tl.float32)
    tl.store(pre + ((pair[:, None] * 4 + gate) * H + head) * K + b, total.to(pre.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "S"])
def gradient_kernel(
    h, h0, keep, dgates, parts, bias_parts, T, B, H, K, S,
    W: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr, SHARED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """parts [S, 4, H, K, K], or SHARED [S, H, 4, K, K]; bias_parts [S, 4, H, K] may be None."""
    gate, head, stripe = tl.program_id(0) % 4, tl.program_id(0) // 4 % H, tl.program_id(0) // (4 * H)
    k = tl.arange(0, W)
    total = tl.zeros([W, W], tl.float32)
    bias_total = tl.zeros([W], tl.float32)
    for block in tl.range(stripe, tl.cdiv(B * T, BM), S, num_stages=STAGES):
        pair = (block * BM + tl.arange(0, BM)).to(tl.int64)
        before = states_before(h, h0, keep, pair, T, B, H, K, head, k)
        at = dgates + ((pair[:, None] * 4 + gate) * H + head) * K + k[None, :]
        da = tl.load(at, mask=(pair < B * T)[:, None] & (k < K)[None, :], other=0.0)
        total += product(tl.trans(before), da, UPCAST)
        if bias_parts is not None:
            bias_total += tl.sum(da.to(tl.float32), 0)
    own = (stripe * H + head) * 4 + gate if SHARED else (stripe * 4 + gate) * H + head
    a, b = k[:, None], k[None, :]
    tl.store(parts + tl.cast(own, tl.int64) * K * K + a * K + b, total, mask=(a < K) & (b < K))
    if bias_parts is not None:
        tl.store(bias_parts + ((stripe * 4 + gate) * H + head) * K + k, bias_total, mask=k < K)


def preactivations(
    gates: Tensor, recurrent: Tensor, h0: Tensor | None, keep: Tensor | None, h: Tensor, pre: Tensor
) -> None:
    """Fills pre [B, T, 4, H, K] = gates + (k_t h_{t-1}) R. recurrent [4, R, K, K] in the dtype of gates; features of
    gates [B, T, 4, H, K] adjoin, the rest as in recurrent_gradient."""
    B, T, _, H, K = gates.shape
    W, BM = max(16, power_of_2(K)), PAIRS[gates.dtype]
    preactivations_kernel[(triton.cdiv(B * T, BM), H, 4)](
        gates, recurrent, h0, keep, h, pre, T, B, H, recurrent.shape[1], K, *gates.stride()[:4],
        W=W, BM=BM, EVEN=K == W, UPCAST=interpreting(), num_warps=PAIR_WARPS,
    )  # fmt: skip


def recurrent_gradient(
    h: Tensor, h0: Tensor | None, keep: Tensor | None, dgates: Tensor, recurrent: Tensor, dbias: Tensor | None
) -> Tensor:
    """dR like recurrent [4, R, K, K], and dbias [4, H, K] filled, where it is asked for.

    h [B, T, H, K], h0 [B, H, K] and dgates [B, T, 4, H, K] of one dtype, keep fp32 [B, T + 1]; all contiguous.
    """
    B, T, H, K = h.shape
    shared, BM = H > 1 and recurrent.shape[1] == 1, PAIRS[h.dtype]
    S = max(1, min(triton.cdiv(B * T, BM), triton.cdiv(PROGRAMS, 4 * H)))
    parts = h.new_empty(S * H if shared else S, recurrent.numel(), dtype=torch.float32)
    bias_parts = None if dbias is None else h.new_empty(S, 4 * H * K, dtype=torch.float32)
    launch(
        gradient_kernel,
        h,
        S * H * 4,
        *(h, h0, keep, dgates, parts, bias_parts, T, B, H, K, S),
        W=max(16, power_of_2(K)),
        BM=BM,
        STAGES=STAGES[h.dtype],
        SHARED=shared,
        UPCAST=interpreting(),
        num_warps=warps(K),
        **limits(K),
    )
    drecurrent = recurrent.new_empty(recurrent.shape)
    add_up(parts, drecurrent, opaque=True)
    if dbias is not None and bias_parts is not None:
        add_up(bias_parts, dbias, opaque=True)
    return drecurrent


def limits(K: int) -> dict[str, int]:
    """Of wide heads: for compute capability 10 ptxas of Triton 3.6 stops at 128 registers otherwise, and spills."""
    return {"maxnreg": 255} if K > 64 else {}


def warps(K: int) -> int:
    """A sum of W x W numbers: 32 or 64 per lane."""
    return 4 if K <= 64 else 8
