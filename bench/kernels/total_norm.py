"""The norm over all gradients of a GPT: ours and torch's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.bench.harness import Case, Provider
from hotplate.bench.kernels.adamw import shapes
from hotplate.kernels.total_norm import total_norm

Inputs = list[Tensor]


def run(impl: str) -> Provider:
    return lambda tensors: [total_norm(tensors, impl=impl)]


def torchs(tensors: Inputs) -> Sequence[Tensor]:
    """What clip_grad_norm_ computes; on a CPU its sums are fp32."""
    return [torch.nn.utils.get_total_norm(tensors)]


def cases(device: str, quick: bool) -> list[Case]:
    """GPT-2's 124 million parameters on a GPU."""
    sizes = shapes(*((32, 1, 64) if quick else (512, 4, 16384) if device == "cpu" else (768, 12, 50304)))
    count = sum(torch.Size(size).numel() for size in sizes)
    ours = ["native", "eager"] if device == "cpu" else ["eager"]
    return [
        Case(
            bench="total_norm",
            name=f"{count / 1e6:.1f}M",
            device=device,
            dtype=torch.float32,
            prepare=lambda: [torch.randn(size, device=device) for size in sizes],
            truth=run("reference"),
            providers={name: run(name) for name in ours} | {"torch": torchs},
            tolerance=1e-3,
            moved_bytes=4 * count,
        )
    ]
