"""The LSTM family: quasi-LSTM (gates from the input only) and LSTMs whose gates also see the state.

Gate order is input, forget, cell, output (i, f, z, o), as in kernels/qlstm; a coupled quasi-LSTM has f, z, o.
Letters: B rows, T steps, D width, H heads, K head width.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from hotplate.kernels.lstm import lstm
from hotplate.kernels.lstm_dense import lstm_dense
from hotplate.kernels.lstm_diagonal import lstm_diagonal
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
        gates, bias = self.gates.before(x, self.gate_count, mixer.width)
        h, c = qlstm(
            gates,
            state["c"],
            rows.resets,
            bias=bias,
            forget_offset=mixer.forget_offset,
            coupled=mixer.coupled,
            impl=mixer.impl,
        )
        return self.out(h), {"c": c}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"c": (self.mixer.width,)}


class GatedByState(Recurrent):
    """A recurrence whose gates also see h_{t-1}: projected gates [B, T, 4, *features], state `h` and `c`."""

    operation: ClassVar[Callable[..., tuple[Tensor, Tensor, Tensor]]]

    def __init__(self, config: ModelConfig, recurrent: tuple[int, ...], axes: tuple[str, ...]) -> None:
        """Recurrent weights [4, *recurrent]; where they are matrices, the last two axes are (in, out)."""
        super().__init__(config)
        self.recurrent = nn.Parameter(torch.empty(4, *recurrent))
        last = len(recurrent)
        self.axes = {"recurrent": Axes(("gates", *axes), reads=last - 1 if last > 1 else None, writes=last)}

    def forward(self, x: Tensor, rows: Rows, state: LayerState) -> tuple[Tensor, LayerState]:
        """x [B, T, D] -> update [B, T, D]; state `h` and `c` [B, *features] fp32."""
        features = self.state_shapes()["h"]
        gates, bias = self.gates.before(x, 4, *features)
        h, h_last, c_last = self.operation(
            gates,
            self.recurrent.to(gates.dtype),
            state["h"],
            state["c"],
            rows.resets,
            bias=bias,
            forget_offset=self.mixer.forget_offset,
            impl=self.mixer.impl,
        )
        return self.out(h.reshape(*x.shape[:2], -1)), {"h": h_last, "c": c_last}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"h": (self.mixer.width,), "c": (self.mixer.width,)}


class LSTM(GatedByState):
    """Multi-head LSTM: each head's gates see that head's h_{t-1} through its own K x K matrices."""

    operation = staticmethod(lstm)

    def __init__(self, config: ModelConfig) -> None:
        mixer = config.mixer
        K, stack = mixer.head_width, (1, "shared") if mixer.shared_recurrent else (mixer.heads, "head")
        super().__init__(config, (stack[0], K, K), (stack[1], "head_width", "head_width"))

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.mixer.heads, self.mixer.head_width)
        return {"h": shape, "c": shape}


class DenseLSTM(GatedByState):
    """The classic LSTM: every gate sees every feature of h_{t-1} (torch.nn.LSTM between two projections)."""

    operation = staticmethod(lstm_dense)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, (config.mixer.width, config.mixer.width), ("heads", "heads"))


class DiagonalLSTM(GatedByState):
    """Every gate sees its own feature of h_{t-1} through one weight."""

    operation = staticmethod(lstm_diagonal)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, (config.mixer.width,), ("heads",))
