"""Causal attention on packed documents: every backend that can serve, and torch's attention with the whole mask.

Letters: B rows, T steps, H query heads, Hkv key heads, K head width.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.attention import Layout, attention, layout
from hotplate.kernels.attention.choice import AUTO, BACKENDS
from hotplate.kernels.attention.problem import Problem
from hotplate.kernels.attention.reference import visible

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SEED = 0
WHOLE_MASK = 1 << 13  # positions of a row up to which torch computes a whole mask as well
# Backends that write whole scores, by device, and positions of a row up to which they run.
WHOLE_SCORES = {"cpu": ("reference", "flex"), "cuda": ("reference", "eager")}
MOST_SCORES = {"cpu": 1 << 10, "cuda": WHOLE_MASK}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """B rows of T positions, and how documents lie in each."""

    documents: str  # length: N documents of T / N; mean: exponential lengths; tiny: 8 to 64
    count: int = 1  # documents of a row, or their mean length
    B: int = 1
    T: int
    H: int
    Hkv: int
    K: int

    def __str__(self) -> str:
        how = {"length": f"{self.count} per row", "mean": f"of mean {self.count}", "tiny": "of 8 to 64"}
        return f"B{self.B} T{self.T} H{self.H}/{self.Hkv} K{self.K} documents {how[self.documents]}"

    def lengths(self) -> list[int]:
        """Of all documents, row after row; the same in every run."""
        draw, made = random.Random(SEED), []
        for _ in range(self.B):
            left = self.T
            while left:
                if self.documents == "length":
                    length = self.T // self.count
                elif self.documents == "mean":
                    length = 1 + int(draw.expovariate(1 / self.count))
                else:
                    length = draw.randint(8, 64)
                made.append(min(left, length))
                left -= made[-1]
        return made


GPU_SHAPES = [
    Shape(documents="length", count=32, T=32768, H=16, Hkv=16, K=64),
    Shape(documents="length", count=16, T=32768, H=16, Hkv=16, K=64),
    Shape(documents="length", count=16, T=32768, H=8, Hkv=8, K=128),
    Shape(documents="length", T=8192, H=16, Hkv=16, K=64),
    Shape(documents="length", T=8192, H=8, Hkv=8, K=128),
    Shape(documents="mean", count=690, T=32768, H=16, Hkv=16, K=64),  # FineWeb's mean
    Shape(documents="tiny", T=147456, H=12, Hkv=12, K=64),  # some 4,096 documents
    Shape(documents="length", B=16, T=2048, H=32, Hkv=8, K=128),
]
CPU_SHAPES = [
    Shape(documents="length", B=2, T=512, H=8, Hkv=8, K=32),  # gpt-mini
    Shape(documents="length", T=1024, H=14, Hkv=2, K=64),
    Shape(documents="length", B=4, T=512, H=8, Hkv=8, K=64),
    Shape(documents="length", count=8, B=4, T=512, H=8, Hkv=2, K=64),
    Shape(documents="mean", count=400, T=4096, H=4, Hkv=4, K=64),
    Shape(documents="tiny", T=4096, H=4, Hkv=4, K=64),
]
QUICK_SHAPES = [Shape(documents="mean", count=20, B=2, T=64, H=4, Hkv=2, K=16)]


def masked_torch(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """One fused call that computes every score, masked or not."""
    B, T, H, _ = q.shape
    mask = visible(B, T, T, cu_seqlens, q.device)[:, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != H)
    return out.transpose(1, 2)


def cases(device: str, quick: bool) -> list[Case]:
    """Forward, and forward with backward; fp32 and bf16 on a CPU, bf16 on a GPU."""
    shapes = QUICK_SHAPES if quick else CPU_SHAPES if device == "cpu" else GPU_SHAPES
    dtypes = (torch.float32, torch.bfloat16) if device == "cpu" else (torch.bfloat16,)
    ways = "forward", "forward+backward"
    return [_case(way, shape, device, dtype) for dtype in dtypes for shape in shapes for way in ways]


def _ours(name: str, at: dict[Tensor, Layout]) -> Op:
    """The backend by name, with the layout of the documents made once, as a model makes it for all its layers."""

    def op(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        if cu_seqlens not in at:
            at.clear()
            at[cu_seqlens] = layout(cu_seqlens, *q.shape[:2])
        return attention(q, k, v, at[cu_seqlens], impl=name)

    return op


def _providers(shape: Shape, device: str, dtype: torch.dtype, gradient: bool) -> dict[str, Op]:
    """AUTO's entry first, then every other backend that can serve; whole masks where they fit."""
    problem = Problem(
        **{name: getattr(shape, name) for name in ("B", "T", "H", "Hkv", "K")},
        S=shape.T,
        dtype=dtype,
        device=torch.device(device),
        packed=shape.documents != "length" or shape.count > 1,
        gradient=gradient,
    )
    served = [name for name, backend in BACKENDS.items() if not backend.reasons(problem)]
    served.sort(key=lambda name: name != AUTO[device])
    few = MOST_SCORES[device] >= shape.T
    layouts: dict[Tensor, Layout] = {}
    ops = {name: _ours(name, layouts) for name in served if few or name not in WHOLE_SCORES[device]}
    return ops | ({"torch attention, whole mask": masked_torch} if shape.T <= WHOLE_MASK else {})


def _truth(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The definition, a document at a time: its whole scores would not fit where rows are long."""
    edges = sorted({*cu_seqlens.tolist(), *range(0, q.shape[0] * q.shape[1] + 1, q.shape[1])})
    lengths = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
    pieces = [x.flatten(0, 1)[None].split(lengths, 1) for x in (q, k, v)]
    alone = [attention(*piece, impl="reference") for piece in zip(*pieces, strict=True)]
    return torch.cat(alone, dim=1).view(q.shape)


def _case(way: str, shape: Shape, device: str, dtype: torch.dtype) -> Case:
    wrap, lengths = forward if way == "forward" else both, shape.lengths()
    B, T, H, Hkv, K = shape.B, shape.T, shape.H, shape.Hkv, shape.K

    def prepare() -> Operands:
        q, k, v = (torch.randn(B, T, heads, K, device=device).to(dtype).requires_grad_() for heads in (H, Hkv, Hkv))
        cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        return Operands([q, k, v, cu_seqlens], torch.randn(B, T, H, K, device=device).to(dtype))

    ops = _providers(shape, device, dtype, gradient=way != "forward")
    passes = 2 if way == "forward" else 7  # matrix products of two flops per multiply-add over half of a square
    values = 2 * H + 2 * Hkv if way == "forward" else 6 * H + 6 * Hkv
    return Case(
        bench="attention",
        name=f"{way} {shape}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(_truth, backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * B * T * K * dtype.itemsize,
        flops=passes * H * K * sum(length * (length + 1) for length in lengths),
    )
