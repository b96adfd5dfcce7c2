"""Newton-Schulz orthogonalisation: ours, Muon's published form, and the definition.

Letters: L stacked matrices, M rows, N columns.
"""

import torch
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, forward, in_float64
from hotplate.kernels.newton_schulz import newton_schulz
from hotplate.kernels.newton_schulz.reference import COEFFICIENTS, NORM_FLOOR

STEPS = 5
TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}  # the products are bfloat16 on a GPU


def published(g: Tensor) -> Tensor:
    """Jordan et al. 2024: whole products of a wide matrix, in bfloat16 on a GPU."""
    a, b, c = COEFFICIENTS
    x = g.bfloat16() if g.is_cuda else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + NORM_FLOOR)
    for _ in range(STEPS):
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return x.to(g.dtype)


def cases(device: str, quick: bool) -> list[Case]:
    """A few matrices on a CPU; of GPT-small's and larger ones on a GPU, one of them alone."""
    shapes = [(2, 32, 48)] if quick else [(4, 256, 1024), (1, 512, 512), (1, 512, 2048)]
    if device == "cuda" and not quick:
        shapes = [(48, 768, 768), (12, 768, 3072), (1, 768, 3072), (4, 1024, 4096)]
    return [_case(shape, device) for shape in shapes]


def _case(shape: tuple[int, int, int], device: str) -> Case:
    L, M, N = shape
    short, long = min(M, N), max(M, N)
    on_cpu = device == "cpu"

    def ours(impl: str) -> Op:
        return lambda g: newton_schulz(g, STEPS, impl)

    ops = {impl: ours(impl) for impl in (("eager",) if on_cpu else ("triton", "eager"))}
    ops |= {"published": published} | ({} if on_cpu else {"torch.compile": torch.compile(published)})
    ops["reference"] = ours("reference")

    def prepare() -> Operands:
        return Operands([torch.randn(shape, device=device)], torch.empty(0))

    return Case(
        bench="newton_schulz",
        name=f"L{L} M{M} N{N}",
        device=device,
        dtype=torch.float32 if on_cpu else torch.bfloat16,  # of the products
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=False),
        providers={name: forward(op) for name, op in ops.items()},
        tolerance=TOLERANCE[device],
        moved_bytes=2 * 4 * L * M * N,
        flops=L * STEPS * (short * (short + 1) * (long + short) + 2 * short * short * long),
    )
