"""A residual block: x + mixer(norm(x)), then x + mlp(norm(x)); or both at once.

The last sum of a block is made by the first norm of the next, which reads both terms anyway.
Letters: B rows, T steps, D width, F hidden features of the MLP.
"""

from torch import Tensor, nn

from hotplate.kernels.mlp import activation
from hotplate.model import mixers
from hotplate.model.axes import Linear
from hotplate.model.config import ModelConfig
from hotplate.model.mixers import Mixer
from hotplate.model.norm import Norm
from hotplate.model.rows import Rows
from hotplate.model.state import LayerState


class MLP(nn.Module):
    """D -> F -> D with GELU, ReLU, its square, or a SiLU gate (then `up` stacks gate and value)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, self.impl = config.mlp, config.impl
        bias = config.bias == "all"
        stacked = 2 if self.kind == "swiglu" else 1
        self.up = Linear("residual", config.width, "ffn", (config.ffn,) * stacked, bias=bias)
        self.down = Linear("ffn", config.ffn, "residual", (config.width,), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.up.before(x)
        return self.down(activation(x, self.kind, bias, impl=self.impl))


class Block(nn.Module):
    """Pre-norm residual block with one mixer and one MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = Norm(config)
        self.mixer: Mixer = mixers.build(config)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config)
        self.parallel = config.parallel

    def forward(
        self, x: Tensor, update: Tensor | None, rows: Rows, state: LayerState
    ) -> tuple[Tensor, Tensor, LayerState]:
        """x [B, T, D] and what is still to be added to it, None = nothing -> both after the block, and the layer's next
        state."""
        normed, x = (self.mixer_norm(x), x) if update is None else self.mixer_norm.add(x, update)
        update, state = self.mixer(normed, rows, state)
        if self.parallel:
            return x, update + self.mlp(self.mlp_norm(x)), state
        normed, x = self.mlp_norm.add(x, update)
        return x, self.mlp(normed), state
