"""One AdamW update of a GPT's parameters, with clipping folded in, of fp32 weights and of bf16 ones with fp32 masters:
ours and torch's.

The learning rate and the decay are 0 and the moments are fixed points, so that every call does the same work.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.bench.harness import Case, Provider
from hotplate.kernels import backends
from hotplate.kernels.adamw import adamw

Inputs = dict[str, list[Tensor]]
BETAS = (0.9, 0.95)


def shapes(width: int, layers: int, vocab: int) -> list[tuple[int, ...]]:
    """Parameters of a GPT."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), *[(width,)] * 6]
    return [(vocab, width), *block * layers]


def run(impl: str) -> Provider:
    """One update; the weights after it."""

    def provider(inputs: Inputs) -> Sequence[Tensor]:
        device = inputs["weights"][0].device
        scale, skipped = torch.ones((), device=device), torch.zeros((), device=device)
        kinds = ("weights", "gradients", "first", "second", "steps")
        copies = inputs.get("copies")
        adamw(
            *(inputs[kind] for kind in kinds), lr=0.0, scale=scale, skipped=skipped, copies=copies, betas=BETAS,
            impl=impl,
        )  # fmt: skip
        return inputs["copies" if copies else "weights"][:1]

    return provider


def cases(device: str, quick: bool) -> list[Case]:
    """GPT-2's 124 million parameters on a GPU."""
    sizes = (32, 1, 64) if quick else (512, 4, 16384) if device == "cpu" else (768, 12, 50304)
    return [_case(shapes(*sizes), narrow, device) for narrow in (False, True)]


def _case(sizes: list[tuple[int, ...]], narrow: bool, device: str) -> Case:
    def prepare() -> Inputs:
        weights = [torch.randn(size, device=device) for size in sizes]
        gradients = [torch.randn_like(w) for w in weights]
        made = {"weights": weights, "gradients": gradients, "first": [g.clone() for g in gradients]}
        made |= {"second": [g.square() for g in gradients], "steps": [torch.zeros((), device=device) for _ in weights]}
        if narrow:
            made |= {"copies": [w.bfloat16() for w in weights], "gradients": [g.bfloat16() for g in gradients]}
        return made

    def truth(inputs: Inputs) -> Sequence[Tensor]:
        return [inputs["weights"][0].clone()]

    count = sum(torch.Size(size).numel() for size in sizes)
    impls = {"native" if device == "cpu" else "triton": "native" if device == "cpu" else "triton"}
    impls |= {name: name for name in backends.FUSED_ADAM if not backends.why_no_fused_adam(name, torch.device(device))}
    return Case(
        bench="adamw",
        name=f"{count / 1e6:.1f}M{' in bf16' if narrow else ''}",
        device=device,
        dtype=torch.float32,
        prepare=prepare,
        truth=truth,
        providers={name: run(impl) for name, impl in (impls | {"torch": "eager"}).items()},
        tolerance=3e-3 if narrow else 1e-7,
        moved_bytes=28 * count,
    )
