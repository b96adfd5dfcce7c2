"""Output projection with loss, forward and backward: ours in chunks, and torch with all logits at once.

Letters: N targets, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.cross_entropy import linear_cross_entropy

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def all_logits(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy((x @ weight.T).float(), targets, reduction="sum")


def cases(device: str, quick: bool) -> list[Case]:
    on_cpu = device == "cpu"
    shapes = (
        [(64, 32, 512)]
        if quick
        else [(1024, 256, 4096), (4096, 512, 16384)]
        if on_cpu
        else [(8192, 768, 16384), (16384, 1024, 65536)]
    )
    dtype = torch.float32 if on_cpu else torch.bfloat16
    return [_case(way, shape, device, dtype) for shape in shapes for way in ("forward", "forward+backward")]


def _case(way: str, shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> Case:
    N, D, V = shape
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        x = torch.randn(N, D, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(V, D, device=device) / D**0.5).to(dtype).requires_grad_()
        return Operands([x, weight, torch.randint(V, (N,), device=device)], torch.ones((), device=device))

    ops: dict[str, Op] = {
        "eager": linear_cross_entropy,
        "reference": lambda *arguments: linear_cross_entropy(*arguments, impl="reference"),
        "F.cross_entropy": all_logits,
    }
    return Case(
        bench="cross_entropy",
        name=f"{way} N{N} D{D} V{V}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=N,
        moved_bytes=(N * D + V * D) * dtype.itemsize * (1 if way == "forward" else 2),
        flops=2 * N * D * V * (1 if way == "forward" else 3),
    )
