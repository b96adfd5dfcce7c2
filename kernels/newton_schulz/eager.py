"""Newton-Schulz with fused multiply-and-add products. Letters: M rows, N columns, L stacked matrices."""

import torch
from torch import Tensor

from hotplate.kernels.newton_schulz.reference import COEFFICIENTS, NORM_FLOOR


def _work_dtype(g: Tensor) -> torch.dtype:
    """bfloat16 on a GPU, as Muon was published; elsewhere float32, or float64 for float64 inputs."""
    return torch.bfloat16 if g.device.type != "cpu" else torch.promote_types(g.dtype, torch.float32)


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """See op.py. The norm is taken in float32 or wider also where the products run in bfloat16."""
    a, b, c = COEFFICIENTS
    M, N = g.shape[-2:]
    x = g.reshape(-1, M, N).to(torch.promote_types(g.dtype, torch.float32))
    x = x.mT if M > N else x
    x = (x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + NORM_FLOOR)).to(_work_dtype(g))
    for _ in range(steps):
        A = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(A, A, A, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if M > N else x).reshape(g.shape).to(g.dtype)
