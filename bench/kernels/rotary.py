"""Cutting a projection into heads with rotary positions, with and without head norms: ours, torch's, the compiler's.

Letters: B rows, T steps, H query heads, G key and value heads, K head width.
"""

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from hotplate.bench.harness import Case, Provider
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.rotary import cut_heads, rotation

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    c, s = cosine[:, :, None], sine[:, :, None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(x.dtype)


def plain(heads: int) -> Op:
    """Cut, norm, turn: as one writes it."""

    def op(qkv: Tensor, cosine: Tensor, sine: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = (qkv.shape[2] - heads) // 2
        q, k, v = qkv.split([heads, groups, groups], dim=2)
        if weights:
            q, k = (rms_norm(x, weight.shape, weight, EPS) for x, weight in zip((q, k), weights, strict=True))
        return turned(q, cosine, sine), turned(k, cosine, sine), v.clone()

    return op


def ours(heads: int, impl: str) -> Op:
    return lambda qkv, cosine, sine, *weights: cut_heads(qkv, heads, (cosine, sine), *weights, eps=EPS, impl=impl)


def cases(device: str, quick: bool) -> list[Case]:
    """As many key heads as query heads, and a quarter; positions of packed documents."""
    on_cpu = device == "cpu"
    shapes = (
        [(2, 16, 4, 2, 16)]
        if quick
        else [(8, 512, 8, 8, 64), (8, 512, 8, 2, 64)]
        if on_cpu
        else [(32, 1024, 12, 12, 64), (32, 1024, 16, 4, 128)]
    )
    ways = ("forward", "forward+backward")
    return [_case(way, shape, normed, device) for shape in shapes for normed in (False, True) for way in ways]


def _case(way: str, shape: tuple[int, int, int, int, int], normed: bool, device: str) -> Case:
    B, T, H, G, K = shape
    dtype, wrap = torch.float32 if device == "cpu" else torch.bfloat16, forward if way == "forward" else both

    def prepare() -> Operands:
        positions = (torch.arange(T, device=device) % 300).expand(B, T)
        qkv = torch.randn(B, T, H + 2 * G, K, device=device).to(dtype).requires_grad_()
        weights = [(0.5 + torch.rand(K, device=device)).to(dtype).requires_grad_() for _ in range(2 if normed else 0)]
        arriving = [torch.randn(B, T, n, K, device=device).to(dtype) for n in (H, G, G)]
        return Operands([qkv, *rotation(positions, K, 1e4), *weights], arriving)

    impls = ("native" if device == "cpu" else "triton", "reference")
    ops = {impl: ours(H, impl) for impl in impls} | {"torch": plain(H)}
    ops |= {"torch.compile": torch.compile(plain(H))} if device == "cuda" else {}
    values = 2 * (H + 2 * G) * K * B * T
    return Case(
        bench="rotary",
        name=f"{'norm ' if normed else ''}{way} B{B} T{T} H{H} G{G} K{K}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=_truth(H, way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * dtype.itemsize * (1 if way == "forward" else 2),
    )


def _truth(heads: int, backward: bool) -> Provider:
    """The definition in float64, but for the angles, which are fp32 by design."""

    def op(qkv: Tensor, cosine: Tensor, sine: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cut_heads(qkv, heads, (cosine.float(), sine.float()), *weights, eps=EPS, impl="reference")

    return in_float64(op, backward=backward)
