"""Causal attention on rows and on packed documents: ours, and torch's attention with the whole mask.

Letters: B rows, T steps, H query heads, Hkv key heads, K head width, N documents of a row.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.attention import attention
from hotplate.kernels.attention.reference import visible

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def masked_torch(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """One fused call that computes every score, masked or not."""
    B, T, H, _ = q.shape
    mask = visible(B, T, T, cu_seqlens, q.device)[:, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != H)
    return out.transpose(1, 2)


def cases(device: str, quick: bool) -> list[Case]:
    """Rows of one document and of eight, with as many key heads as query heads and with a quarter."""
    on_cpu = device == "cpu"
    shapes = (
        [(2, 64, 4, 2, 16)]
        if quick
        else [(4, 512, 8, 8, 64), (4, 512, 8, 2, 64)]
        if on_cpu
        else [(16, 1024, 12, 12, 64), (16, 1024, 16, 4, 128)]
    )
    dtype = torch.float32 if on_cpu else torch.bfloat16
    return [
        _case(way, shape, N, device, dtype)
        for shape in shapes
        for N in (1, 8)
        for way in ("forward", "forward+backward")
    ]


def _case(way: str, shape: tuple[int, int, int, int, int], N: int, device: str, dtype: torch.dtype) -> Case:
    B, T, H, Hkv, K = shape
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        q, k, v = (torch.randn(B, T, heads, K, device=device).to(dtype).requires_grad_() for heads in (H, Hkv, Hkv))
        cu_seqlens = torch.arange(0, B * T + 1, T // N, dtype=torch.int32, device=device)
        return Operands([q, k, v, cu_seqlens], torch.randn(B, T, H, K, device=device).to(dtype))

    ops: dict[str, Op] = {
        "eager": attention,
        "reference": lambda *arguments: attention(*arguments, impl="reference"),
        "torch attention, whole mask": masked_torch,
    }
    passes = 2 if way == "forward" else 7
    values = 2 * H + 2 * Hkv if way == "forward" else 6 * H + 6 * Hkv
    return Case(
        bench="attention",
        name=f"{way} B{B} T{T} H{H}/{Hkv} K{K} documents {N}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * B * T * K * dtype.itemsize,
        flops=passes * B * H * T * (T // N) * K,  # two per multiply-add, half of the square
    )
