"""The definition of the quintic Newton-Schulz orthogonalisation. Letters: M rows, N columns."""

import torch
from torch import Tensor

# Jordan et al. 2024 (Muon): the steepest slope at 0 whose iterates stay near 1, in about 0.7..1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_FLOOR = 1e-7  # a zero matrix stays zero


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """X <- a X + (b A + c A^2) X with A = X X^T, from X = g / |g|. Feed it float64 for the truth."""
    a, b, c = COEFFICIENTS
    x = g.to(torch.promote_types(g.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.square().sum((-2, -1), keepdim=True).sqrt() + NORM_FLOOR)
    for _ in range(steps):
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return (x.mT if tall else x).to(g.dtype)
