"""The LSTM family: multi-head LSTM (recurrent gates) and quasi-LSTM (gates from the input only).

Gate order is input, forget, cell, output (i, f, z, o), as in kernels/qlstm; a coupled quasi-LSTM has f, z, o.
Letters: B rows, T steps, D width, H heads, K head width.
"""

import torch
from torch import Tensor, nn

from hotplate.kernels.lstm import lstm
from hotplate.kernels.qlstm import qlstm
from hotplate.model.axes import Axes, Linear
from hotplate.model.config import ModelConfig
from hotplate.model.rows import Rows
from hotplate.model.state import LayerState


class Recurrent(nn.Module):
    """Projections around a recurrence: x -> gates -> h -> update of the residual stream."""

    gate_count = 4

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mixer, bias = config.mixer, config.bias == "all"
        self.mixer = mixer
        self.gates = Linear("residual", config.width, "heads", (mixer.width,) * self.gate_count, bias=bias)
        self.out = Linear("heads", mixer.width, "residual", (config.width,), bias=bias)

    def initial_state(self, rows: int, device: torch.device, dtype: torch.dtype, cache: bool) -> LayerState:
        """Zeros [B, ...] in fp32 (or wider): the state is carried in full precision whatever the weights are in."""
        wide = torch.promote_types(dtype, torch.float32)
        return {
            name: torch.zeros(rows, *shape, device=device, dtype=wide) for name, shape in self.state_shapes().items()
        }

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        raise NotImplementedError


class QuasiLSTM(Recurrent):
    """c_t = f_t c_{t-1} + i_t z_t, h_t = o_t tanh(c_t), all gates from x_t (Languini Kitchen's default LSTM)."""

    def __init__(self, config: ModelConfig) -> None:
        self.gate_count = 3 if config.mixer.coupled else 4
        super().__init__(config)

    def forward(self, x: Tensor, rows: Rows, state: LayerState) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> update [B, T, D]; state `c` [B, H * K] fp32."""
        mixer = self.mixer
        gates = self.gates(x).unflatten(-1, (self.gate_count, mixer.width))
        h, c = qlstm(
            gates,
            state["c"],
            rows.resets,
            forget_offset=mixer.forget_offset,
            coupled=mixer.coupled,
            impl=mixer.impl,
        )
        return self.out(h), {"c": c}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"c": (self.mixer.width,)}


class LSTM(Recurrent):
    """Multi-head LSTM: each head's gates also see that head's h_{t-1} through its own K x K matrices."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        matrices = 1 if self.mixer.shared_recurrent else self.mixer.heads
        self.recurrent = nn.Parameter(torch.empty(4, matrices, self.mixer.head_width, self.mixer.head_width))
        self.axes = {"recurrent": Axes(("gates", "heads", "head_in", "head_out"))}

    def forward(self, x: Tensor, rows: Rows, state: LayerState) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> update [B, T, D]; state `h` and `c` [B, H, K] fp32."""
        mixer = self.mixer
        gates = self.gates(x).unflatten(-1, (4, mixer.heads, mixer.head_width))
        recurrent = self.recurrent.to(gates.dtype)
        h, h_last, c_last = lstm(
            gates,
            recurrent,
            state["h"],
            state["c"],
            rows.resets,
            forget_offset=mixer.forget_offset,
            impl=mixer.impl,
        )
        return self.out(h.flatten(-2)), {"h": h_last, "c": c_last}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.mixer.heads, self.mixer.head_width)
        return {"h": shape, "c": shape}
