"""RMSNorm, alone and of a residual sum: ours, torch's, and on a GPU the compiler's and Liger's."""

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from hotplate.bench.harness import Case
from hotplate.bench.norms import EPS, norm_cases
from hotplate.bench.providers import Op, imported
from hotplate.kernels.rmsnorm import add_rmsnorm, rmsnorm


def torchs(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight.shape, weight, EPS)


def torchs_add(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return torchs(total, weight), total


def peers(adding: bool) -> dict[str, Op]:
    found: dict[str, Op] = {"torch.compile": torch.compile(torchs_add if adding else torchs)}
    if (liger := imported("liger_kernel.transformers.functional")) is not None:
        alone, fused = liger.liger_rms_norm, liger.liger_fused_add_rms_norm
        found["liger"] = (
            (lambda x, residual, weight: fused(x, residual, weight, EPS))
            if adding
            else lambda x, weight: alone(x, weight, EPS)
        )
    return found


def cases(device: str, quick: bool) -> list[Case]:
    """Forward, and forward with backward."""
    return [
        *norm_cases("rmsnorm", False, rmsnorm, torchs, 1, peers, device, quick),
        *norm_cases("rmsnorm", True, add_rmsnorm, torchs_add, 1, peers, device, quick),
    ]
