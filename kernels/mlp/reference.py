"""The definition of the activation between an MLP's two products. Letters: F features."""

import math

import torch
from torch import Tensor


def activation(x: Tensor, kind: str) -> Tensor:
    """[..., F] from x [..., F]; from x [..., 2 F], gate then value, for swiglu. Float64 for the truth."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if kind == "swiglu":
        gate, value = wide.chunk(2, dim=-1)
        return (gate * torch.sigmoid(gate) * value).to(x.dtype)
    if kind.startswith("relu"):
        positive = wide.clamp(min=0)
        return (positive.square() if kind == "relu2" else positive).to(x.dtype)
    if kind == "gelu_erf":
        return (0.5 * wide * (1 + torch.erf(wide / math.sqrt(2)))).to(x.dtype)
    return (0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))).to(x.dtype)
