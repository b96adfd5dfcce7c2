"""cut_heads as two Triton kernels, visible to torch.compile (torch.library.triton_op). Tensors come contiguous.

Letters: M tokens, H query heads, G key and value heads, K head width, P = K / 2 pairs, BH heads and BP pairs of a
program's block, S stripes. A program's item is BH heads of one token; a head's number makes it query, key or value.
The backward's programs each walk over every S-th item and own one partial sum of the weights' gradients: no atomics,
so runs repeat bit for bit. Importing this needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.launch import power_of_2, wrap_triton
from hotplate.kernels.rotary import autograd

BLOCK_PAIRS = 512  # of a program's item: 8 per lane of two warps
STRIPES = 1024  # programs that own a partial sum; a guess, not measured on a GPU


@triton.jit
def _weights(q_weight, k_weight, head, H, at, inside):
    """[BH, BP]: the queries' or the keys' weight of each head."""
    of_q = tl.load(q_weight + at, mask=inside, other=0.0).to(tl.float32)
    of_k = tl.load(k_weight + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where((head < H)[:, None], of_q[None, :], of_k[None, :])


@triton.jit
def _put(q, k, v, token, head, at, x, H, G, K, inside):
    """x [BH, BP] into the columns `at` of whichever result each head belongs to."""
    column = head[:, None] * K + at[None, :]
    tl.store(q + token * H * K + column, x.to(q.dtype.element_ty), mask=inside & (head < H)[:, None])
    is_k = (head >= H) & (head < H + G)
    tl.store(k + token * G * K + column - H * K, x.to(k.dtype.element_ty), mask=inside & is_k[:, None])
    is_v = (head >= H + G) & (head < H + 2 * G)
    tl.store(v + token * G * K + column - (H + G) * K, x.to(v.dtype.element_ty), mask=inside & is_v[:, None])


@triton.jit
def _take(q, k, v, token, head, at, H, G, K, inside):
    """The inverse of _put."""
    column = head[:, None] * K + at[None, :]
    x = tl.load(q + token * H * K + column, mask=inside & (head < H)[:, None], other=0.0).to(tl.float32)
    is_k = (head >= H) & (head < H + G)
    x += tl.load(k + token * G * K + column - H * K, mask=inside & is_k[:, None], other=0.0).to(tl.float32)
    is_v = (head >= H + G) & (head < H + 2 * G)
    at_v = token * G * K + column - (H + G) * K
    return x + tl.load(v + at_v, mask=inside & is_v[:, None], other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    qkv, cosine, sine, q_weight, k_weight, q, k, v, H, G, K, eps: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr
):
    """cosine and sine, or both weights, may be None."""
    N = H + 2 * G
    P = K // 2
    token = (tl.program_id(0) // tl.cdiv(N, BH)).to(tl.int64)
    head = tl.program_id(0) % tl.cdiv(N, BH) * BH + tl.arange(0, BH)
    p = tl.arange(0, BP)
    inside = (head < N)[:, None] & (p < P)[None, :]
    x = qkv + token * N * K + head[:, None] * K + p[None, :]
    first = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + P, mask=inside, other=0.0).to(tl.float32)
    turning = (head < H + G)[:, None]
    if q_weight is not None:
        r = 1.0 / tl.sqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / K + eps)[:, None]
        first = tl.where(turning, first * r * _weights(q_weight, k_weight, head, H, p, p < P), first)
        second = tl.where(turning, second * r * _weights(q_weight, k_weight, head, H, p + P, p < P), second)
    if cosine is not None:
        c = tl.load(cosine + token * P + p, mask=p < P, other=0.0)[None, :]
        s = tl.load(sine + token * P + p, mask=p < P, other=0.0)[None, :]
        turned = first * c - second * s
        second = tl.where(turning, second * c + first * s, second)
        first = tl.where(turning, turned, first)
    _put(q, k, v, token, head, p, first, H, G, K, inside)
    _put(q, k, v, token, head, p + P, second, H, G, K, inside)


@triton.jit
def backward_kernel(
    dq, dk, dv, qkv, cosine, sine, q_weight, k_weight, dqkv, dweights, M, H, G, K, S, eps: tl.constexpr,
    BH: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """cosine and sine, or qkv, both weights and dweights, may be None."""
    N = H + 2 * G
    P = K // 2
    blocks = tl.cdiv(N, BH)
    p = tl.arange(0, BP)
    sums = tl.zeros([4, BP], tl.float32)  # queries' first and second half, keys' first and second half
    part = tl.arange(0, 4)[:, None]
    for item in range(tl.program_id(0), M * blocks, S):
        token = (item // blocks + tl.zeros([1], tl.int32)).to(tl.int64)[:, None]
        head = item % blocks * BH + tl.arange(0, BH)
        inside = (head < N)[:, None] & (p < P)[None, :]
        at = token * N * K + head[:, None] * K + p[None, :]
        turning = (head < H + G)[:, None]
        first = _take(dq, dk, dv, token, head, p, H, G, K, inside)
        second = _take(dq, dk, dv, token, head, p + P, H, G, K, inside)
        if cosine is not None:
            c = tl.load(cosine + token * P + p[None, :], mask=(p < P)[None, :], other=0.0)
            s = tl.load(sine + token * P + p[None, :], mask=(p < P)[None, :], other=0.0)
            turned = first * c + second * s
            second = tl.where(turning, second * c - first * s, second)
            first = tl.where(turning, turned, first)
        if q_weight is not None:
            x1 = tl.load(qkv + at, mask=inside, other=0.0).to(tl.float32)
            x2 = tl.load(qkv + at + P, mask=inside, other=0.0).to(tl.float32)
            r = 1.0 / tl.sqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / K + eps)[:, None]
            x1 = x1 * r
            x2 = x2 * r
            is_q = (head < H)[:, None]
            w1 = first * x1
            w2 = second * x2
            of_q1 = tl.sum(tl.where(is_q, w1, 0.0), 0)[None, :]
            of_q2 = tl.sum(tl.where(is_q, w2, 0.0), 0)[None, :]
            of_k1 = tl.sum(tl.where(turning & (head >= H)[:, None], w1, 0.0), 0)[None, :]
            of_k2 = tl.sum(tl.where(turning & (head >= H)[:, None], w2, 0.0), 0)[None, :]
            sums += tl.where(part < 2, tl.where(part == 0, of_q1, of_q2), tl.where(part == 2, of_k1, of_k2))
            g1 = first * _weights(q_weight, k_weight, head, H, p, p < P)
            g2 = second * _weights(q_weight, k_weight, head, H, p + P, p < P)
            along = ((tl.sum(g1 * x1, 1) + tl.sum(g2 * x2, 1)) / K)[:, None]
            first = tl.where(turning, r * (g1 - x1 * along), first)
            second = tl.where(turning, r * (g2 - x2 * along), second)
        tl.store(dqkv + at, first.to(dqkv.dtype.element_ty), mask=inside)
        tl.store(dqkv + at + P, second.to(dqkv.dtype.element_ty), mask=inside)
    if q_weight is not None:
        own = dweights + tl.program_id(0).to(tl.int64) * 2 * K
        tl.store(own + part * P + p[None, :], sums, mask=(p < P)[None, :] & (part < 4))


def blocks(N: int, K: int) -> tuple[int, int, int]:
    """BH, BP and warps."""
    BP = max(16, power_of_2(K // 2))
    BH = min(power_of_2(N), max(1, BLOCK_PAIRS // BP))
    return BH, BP, 2


def forward(
    qkv: Tensor,
    heads: int,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v."""
    B, T, N, K = qkv.shape
    G = (N - heads) // 2
    q, k, v = (qkv.new_empty(B, T, n, K) for n in (heads, G, G))
    BH, BP, warps = blocks(N, K)
    if B * T:
        wrap_triton(forward_kernel)[(B * T * triton.cdiv(N, BH),)](
            qkv, cosine, sine, q_weight, k_weight, q, k, v, heads, G, K, eps, BH=BH, BP=BP, num_warps=warps
        )
    return q, k, v


def backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor | None,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """dqkv, and the weights' gradients fp32 [2, K] (empty without weights)."""
    B, T, H, K = dq.shape
    G = dk.shape[2]
    N = H + 2 * G
    BH, BP, warps = blocks(N, K)
    items = B * T * triton.cdiv(N, BH)
    S = items if q_weight is None else min(items, STRIPES)
    dqkv = dq.new_empty(B, T, N, K)
    dweights = dq.new_empty(0 if q_weight is None else S, 2, K, dtype=torch.float32)
    if B * T:
        into = None if q_weight is None else dweights
        wrap_triton(backward_kernel)[(S,)](
            dq, dk, dv, qkv, cosine, sine, q_weight, k_weight, dqkv, into, B * T, H, G, K, S, eps,
            BH=BH, BP=BP, num_warps=warps,
        )  # fmt: skip
    return dqkv, dweights.sum(0)


operator = torch.library.triton_op("hotplate::rotary", forward, mutates_args=())
backward_operator = torch.library.triton_op("hotplate::rotary_backward", backward, mutates_args=())
torch.library.register_autograd(
    "hotplate::rotary", autograd.derivative(backward_operator), setup_context=autograd.setup
)
