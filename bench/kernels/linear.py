"""A projection: ours and torch's own. Letters: M rows, I inputs, O outputs."""

import torch
import torch.nn.functional as F

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.linear import linear
from hotplate.kernels.product import takes_halves

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SHAPES = ((1024, 512, 512), (1024, 512, 2048), (1024, 2048, 512), (1024, 512, 16384), (1024, 896, 4864))


def cases(device: str, quick: bool) -> list[Case]:
    """Projections of gpt-mini at 2 x 512 tokens, and one of the speech model; with backward."""
    shapes = ((64, 64, 96),) if quick else SHAPES
    return [
        _case(way, *shape, device, dtype)
        for dtype in dtypes(device)
        for shape in shapes
        for way in ("forward", "forward+backward")
    ]


def dtypes(device: str) -> list[torch.dtype]:
    """bf16, on a CPU where its products are faster than fp32's, which are measured there first."""
    if device == "cuda":
        return [torch.bfloat16]
    return [torch.float32, *([torch.bfloat16] if takes_halves(torch.bfloat16) else [])]


def _case(way: str, M: int, I: int, O: int, device: str, dtype: torch.dtype) -> Case:  # noqa: E741
    wrap = forward if way == "forward" else both

    def ours(impl: str) -> Op:
        return lambda x, weight: linear(x, weight, impl=impl)

    def prepare() -> Operands:
        x, weight = torch.randn(M, I, device=device), torch.randn(O, I, device=device) / I**0.5
        upstream = torch.randn(M, O, device=device).to(dtype)
        return Operands([t.to(dtype).requires_grad_() for t in (x, weight)], upstream)

    ops: dict[str, Op] = {"native": ours("native")} if device == "cpu" else {}
    ops["torch"] = F.linear
    passes = 1 if way == "forward" else 3
    return Case(
        bench="linear",
        name=f"{way} M{M} I{I} O{O}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(F.linear, backward=wrap is both),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=M,
        moved_bytes=passes * (M * I + I * O + M * O) * dtype.itemsize,
        flops=2 * passes * M * I * O,
    )
