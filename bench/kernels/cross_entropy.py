"""Output projection with loss, forward and backward: ours in chunks, torch with all logits at once, and peers on a GPU.

Letters: N targets, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hotplate.bench.harness import Case
from hotplate.bench.kernels.linear import dtypes
from hotplate.bench.providers import Op, Operands, both, forward, imported, in_float64
from hotplate.kernels.cross_entropy import linear_cross_entropy, linear_losses

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def all_logits(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy((x @ weight.T).float(), targets, reduction="sum")


def ours(impl: str) -> Op:
    return lambda *arguments: linear_cross_entropy(*arguments, impl=impl).loss


def by_row(*arguments: Tensor) -> Tensor:
    """The logits are computed a second time in the backward."""
    return linear_losses(*arguments).sum()


def peers() -> dict[str, Op]:
    """What a GPU has besides: the compiler, and the libraries that are installed."""
    found: dict[str, Op] = {"torch.compile": torch.compile(all_logits)}
    if (liger := imported("liger_kernel.transformers")) is not None:
        fused = liger.LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["liger"] = lambda x, weight, targets: fused(weight, x, targets)
    if (cut := imported("cut_cross_entropy")) is not None:
        found["cut-cross-entropy"] = lambda x, weight, targets: cut.linear_cross_entropy(
            x, weight, targets, reduction="sum", impl="cce_kahan_full_c"
        )
    return found


def cases(device: str, quick: bool) -> list[Case]:
    """A small vocabulary, GPT-2's, and on a GPU a large one."""
    on_cpu = device == "cpu"
    shapes = (
        [(64, 32, 512)]
        if quick
        else [(4096, 256, 500), (1024, 256, 4096), (4096, 512, 50304)]
        if on_cpu
        else [(32768, 768, 500), (32768, 768, 50304), (8192, 4096, 131072)]
    )
    return [
        _case(way, shape, device, dtype)
        for dtype in dtypes(device)
        for shape in shapes
        for way in ("forward", "forward+backward")
    ]


def _case(way: str, shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> Case:
    N, D, V = shape
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        x = torch.randn(N, D, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(V, D, device=device) / D**0.5).to(dtype).requires_grad_()
        return Operands([x, weight, torch.randint(V, (N,), device=device)], torch.ones((), device=device))

    ops: dict[str, Op] = {
        **{impl: ours(impl) for impl in ("triton" if device == "cuda" else "native", "eager")},
        "by row": by_row,
        "F.cross_entropy": all_logits,
        **(peers() if device == "cuda" else {}),
    }
    return Case(
        bench="cross_entropy",
        name=f"{way} N{N} D{D} V{V}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ours("reference"), backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=N,
        moved_bytes=(N * D + V * D) * dtype.itemsize * (1 if way == "forward" else 2),
        flops=2 * N * D * V * (1 if way == "forward" else 3),
    )
