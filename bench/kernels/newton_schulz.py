"""Newton-Schulz orthogonalisation: ours and the definition.

Letters: L stacked matrices, M rows, N columns.
"""

import torch

from hotplate.bench.harness import Case
from hotplate.bench.providers import Operands, forward, in_float64
from hotplate.kernels.newton_schulz import newton_schulz

STEPS = 5
TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}  # the products are bfloat16 on a GPU


def cases(device: str, quick: bool) -> list[Case]:
    shapes = [(2, 32, 48)] if quick else [(4, 256, 1024), (1, 512, 512)]
    if device == "cuda" and not quick:
        shapes = [(12, 768, 3072), (4, 1024, 1024)]
    return [_case(shape, device) for shape in shapes]


def _case(shape: tuple[int, int, int], device: str) -> Case:
    L, M, N = shape
    short, long = min(M, N), max(M, N)
    ops = {name: lambda g, impl=name: newton_schulz(g, STEPS, impl) for name in ("eager", "reference")}

    def prepare() -> Operands:
        g = torch.randn(shape, device=device)
        return Operands([g], torch.empty(0))

    return Case(
        bench="newton_schulz",
        name=f"L{L} M{M} N{N}",
        device=device,
        dtype=torch.float32,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=False),
        providers={name: forward(op) for name, op in ops.items()},
        tolerance=TOLERANCE[device],
        moved_bytes=2 * 4 * L * M * N,
        flops=L * STEPS * (4 * short * short * long + 2 * short**3),
    )
