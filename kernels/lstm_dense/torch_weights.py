"""Weights of torch.nn.LSTM in the layout of lstm_dense. Letters: D width of the state, I width of the input."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hotplate.kernels.checks import want


@dataclass(frozen=True)
class LSTMWeights:
    """gates = linear(x, weight, bias).unflatten(-1, (4, D)); h, ... = lstm_dense(gates, recurrent)."""

    weight: Tensor  # [4 D, I], blocks (i, f, z, o)
    bias: Tensor | None  # [4 D]: both of torch's biases
    recurrent: Tensor  # [4, D (in), D (out)]


def import_torch_lstm(module: nn.LSTM, layer: int = 0, reverse: bool = False) -> LSTMWeights:
    """Copies the weights of one layer and direction; torch's gates (i, f, g, o) are our (i, f, z, o).

    ValueError for a projected LSTM (proj_size > 0), or where there is no such layer or direction.
    """
    want(
        "import_torch_lstm",
        isinstance(module, nn.LSTM) and module.proj_size == 0,
        "torch.nn.LSTM with proj_size=0",
        f"{module}",
        "a projection of h is no part of this recurrence",
    )
    want(
        "import_torch_lstm",
        0 <= layer < module.num_layers and (module.bidirectional or not reverse),
        f"a layer below {module.num_layers}{'' if module.bidirectional else ', not reversed'}",
        f"layer={layer}, reverse={reverse}",
        "name a layer and direction that the module has",
    )
    end = f"_l{layer}{'_reverse' if reverse else ''}"
    with torch.no_grad():
        D = module.hidden_size
        bias = getattr(module, f"bias_ih{end}") + getattr(module, f"bias_hh{end}") if module.bias else None
        recurrent = getattr(module, f"weight_hh{end}").view(4, D, D).mT.contiguous()
        return LSTMWeights(getattr(module, f"weight_ih{end}").clone(), bias, recurrent)
