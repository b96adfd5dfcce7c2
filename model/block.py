"""A residual block: x + mixer(norm(x)), then x + mlp(norm(x)); or both at once.

Letters: B rows, T steps, D width, F hidden features of the MLP.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from hotplate.model import mixers
from hotplate.model.axes import Linear
from hotplate.model.config import ModelConfig
from hotplate.model.mixers import Mixer
from hotplate.model.rows import Rows
from hotplate.model.state import LayerState


def build_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm with or without gain and bias, or RMSNorm with gain, over the residual stream."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, elementwise_affine=config.norm == "layernorm")


class MLP(nn.Module):
    """D -> F -> D with GELU, ReLU, its square, or a SiLU gate (then `up` stacks gate and value)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        bias = config.bias == "all"
        stacked = 2 if self.kind == "swiglu" else 1
        self.up = Linear("residual", config.width, "ffn", (config.ffn,) * stacked, bias=bias)
        self.down = Linear("ffn", config.ffn, "residual", (config.width,), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.kind == "swiglu":
            gate, value = hidden.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        if self.kind.startswith("relu"):
            hidden = F.relu(hidden)
            return self.down(hidden.square() if self.kind == "relu2" else hidden)
        return self.down(F.gelu(hidden, approximate="tanh" if self.kind == "gelu" else "none"))


class Block(nn.Module):
    """Pre-norm residual block with one mixer and one MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = build_norm(config)
        self.mixer: Mixer = mixers.build(config)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)
        self.parallel = config.parallel

    def forward(self, x: Tensor, rows: Rows, state: LayerState) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> the same shape, and the layer's next state."""
        update, state = self.mixer(self.mixer_norm(x), rows, state)
        if self.parallel:
            return x + update + self.mlp(self.mlp_norm(x)), state
        x = x + update
        return x + self.mlp(self.mlp_norm(x)), state
