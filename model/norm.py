"""Norms over the last axis, alone or of a residual sum.

Letters: D width, K head width.
"""

import torch
from torch import Tensor, nn

from hotplate.kernels.layernorm import add_layernorm, layernorm
from hotplate.kernels.rmsnorm import add_rmsnorm, rmsnorm
from hotplate.model.axes import Axes
from hotplate.model.config import ModelConfig


class Norm(nn.Module):
    """LayerNorm with weight and bias, or RMSNorm with weight, over the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps, self.impl = config.norm_eps, config.impl
        self.weight = nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if config.norm == "layernorm" else None
        self.axes = {"weight": Axes(("residual",)), "bias": Axes(("residual",))}

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> the same shape and dtype."""
        if self.bias is None:
            return rmsnorm(x, self.weight, self.eps, impl=self.impl)
        return layernorm(x, self.weight, self.bias, self.eps, impl=self.impl)

    def add(self, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """(the norm of x + update, x + update), in one pass."""
        update = update.to(x.dtype)
        if self.bias is None:
            return add_rmsnorm(x, update, self.weight, self.eps, impl=self.impl)
        return add_layernorm(x, update, self.weight, self.bias, self.eps, impl=self.impl)


class HeadNorm(nn.Module):
    """The weight of an RMSNorm over the features of each head, one for all heads; kernels/rotary applies it."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))
        self.axes = {"weight": Axes(("head_width",))}
