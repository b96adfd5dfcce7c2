"""The definition of LayerNorm. Letters: D features."""

import torch
from torch import Tensor


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """weight (x - mean(x)) / sqrt(var(x) + eps) + bias over the last axis. Float64 for the truth."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    scaled = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (scaled * weight.to(wide.dtype) + bias.to(wide.dtype)).to(x.dtype)


def add_layernorm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(the norm of x + residual, the sum in the dtype of x)."""
    total = x + residual
    return layernorm(total, weight, bias, eps), total
