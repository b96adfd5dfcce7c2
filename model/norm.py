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
    """LayerNorm with weight and bias or without both, or RMSNorm with weight, over the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps, self.impl, self.kind = config.norm_eps, config.impl, config.norm
        plain, centred = self.kind == "plain_layernorm", self.kind == "layernorm"
        self.weight = None if plain else nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if centred else None
        self.axes = {"weight": Axes(("residual",)), "bias": Axes(("residual",))}

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> the same shape and dtype."""
        weight, bias = self._affine(x)
        if bias is None:
            return rmsnorm(x, weight, self.eps, impl=self.impl)
        return layernorm(x, weight, bias, self.eps, impl=self.impl)

    def add(self, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """(the norm of x + update, x + update), in one pass."""
        update, (weight, bias) = update.to(x.dtype), self._affine(x)
        if bias is None:
            return add_rmsnorm(x, update, weight, self.eps, impl=self.impl)
        return add_layernorm(x, update, weight, bias, self.eps, impl=self.impl)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias; constants where the norm has neither."""
        if self.weight is None:
            return x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
        return self.weight, self.bias


class HeadNorm(nn.Module):
    """The weight of an RMSNorm over the features of each head, one for all heads; kernels/rotary applies it."""

    def __init__(self, head_width: int, powers: tuple[tuple[str, float] | None, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_width))
        self.axes = {"weight": Axes(("head_width",), powers=powers)}
