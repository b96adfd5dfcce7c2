"""What a model costs: parameters, floating-point operations and bytes, from its config alone.

Letters: T steps of a window, D width, F ffn, V vocabulary, K head width.
"""

from dataclasses import dataclass

import torch

from hotplate.model.axes import parameter_axes
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel

BACKWARD_OVER_FORWARD = 2  # two GEMMs per forward GEMM: one for the input, one for the weight

# Dense bf16 tensor peak in FLOP/s (fp32 accumulate), vendor datasheets, by a part of torch's device name.
PEAK_FLOPS = {
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


@dataclass(frozen=True)
class Cost:
    """Counts for one model; FLOPs count a multiply-add as two, the head, and no embedding look-up."""

    parameters: int
    embedding_parameters: int  # token and position tables, and the head where it is separate
    matmul_flops: int  # forward, per token
    mixing_flops: int  # forward, per token: attention scores and values, or the recurrence

    @property
    def forward_flops(self) -> int:
        return self.matmul_flops + self.mixing_flops

    @property
    def training_flops(self) -> int:
        """Forward and backward, per token."""
        return self.forward_flops * (1 + BACKWARD_OVER_FORWARD)


def cost(config: ModelConfig, window: int, *, causal: bool = True) -> Cost:
    """Cost at windows of `window` steps. `causal` counts only the attention scores at or below the diagonal
    (what the model needs); False counts the full square, as most published FLOP counts do."""
    with torch.device("meta"):
        model = LanguageModel(config)
    parameters = parameter_axes(model)
    total = sum(p.numel() for p, _ in parameters.values())
    tables = sum(p.numel() for p, axes in parameters.values() if {"vocab", "position"} & set(axes.names))
    matrices = sum(p.numel() for p, axes in parameters.values() if axes.hidden_matrix)
    if config.mixer.shared_recurrent:  # one matrix per gate, used once per head
        matrices += config.layers * 4 * (config.mixer.heads - 1) * config.mixer.head_width**2
    return Cost(
        parameters=total,
        embedding_parameters=tables,
        matmul_flops=2 * (matrices + config.vocab * config.width),
        mixing_flops=_mixing_flops(config, window, causal),
    )


def _mixing_flops(config: ModelConfig, window: int, causal: bool) -> int:
    width = config.mixer.width
    if config.mixer.kind == "attention":
        keys = (window + 1) / 2 if causal else window
        return round(2 * 2 * width * keys) * config.layers
    by_state = 8 * width if config.mixer.kind == "lstm_diagonal" else 0  # one multiply-add per gate
    return (6 * width + by_state) * config.layers  # f*c + i*z and o*tanh(c), counting no transcendental


def device_peak_flops(device: torch.device) -> float | None:
    """Datasheet bf16 peak of `device` in FLOP/s, or None where it is not known: then no utilisation is reported."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
