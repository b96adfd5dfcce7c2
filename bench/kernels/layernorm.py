"""LayerNorm, alone and of a residual sum: ours, torch's, and on a GPU the compiler's and Liger's."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from hotplate.bench.harness import Case
from hotplate.bench.norms import EPS, norm_cases
from hotplate.bench.providers import Op, imported
from hotplate.kernels.layernorm import add_layernorm, layernorm


def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layer_norm(x, weight.shape, weight, bias, EPS)


def torchs_add(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return torchs(total, weight, bias), total


def peers(adding: bool) -> dict[str, Op]:
    found: dict[str, Op] = {"torch.compile": torch.compile(torchs_add if adding else torchs)}
    if not adding and (liger := imported("liger_kernel.transformers.functional")) is not None:
        found["liger"] = lambda x, weight, bias: liger.liger_layer_norm(x, weight, bias, EPS)
    return found


def cases(device: str, quick: bool) -> list[Case]:
    """Forward, and forward with backward."""
    return [
        *norm_cases("layernorm", False, layernorm, torchs, 2, peers, device, quick),
        *norm_cases("layernorm", True, add_layernorm, torchs_add, 2, peers, device, quick),
    ]
