"""Initial weights, from a seed alone."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hotplate.model.axes import parameter_axes
from hotplate.model.block import MLP
from hotplate.model.config import ModelConfig
from hotplate.model.mup import initial_scale


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give every parameter its initial values."""
    values = initial_values(model, config, seed)
    for parameter, _ in parameter_axes(model).values():
        parameter.copy_(next(values)[1])


def initial_values(model: nn.Module, config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 values on the CPU) of every parameter of `model`, which may itself be without memory.

    Matrices N(0, init_std), biases 0, norm weights 1; the MLP's second matrix N(0, init_std / sqrt(2 * layers))
    (Languini Kitchen's rule, after GPT-2). Under muP hidden matrices start smaller in wider models.

    Values depend on the seed and the parameter order only, and are drawn on the CPU, so that every device and every
    rank starts from the same model.
    """
    generator = torch.Generator().manual_seed(seed)
    scaled = {id(module.down.weight) for module in model.modules() if isinstance(module, MLP)}
    for name, (parameter, axes) in parameter_axes(model).items():
        shape = tuple(parameter.shape)
        if len(axes.names) >= 2:
            std = config.init_std / math.sqrt(2 * config.layers) if id(parameter) in scaled else config.init_std
            std *= initial_scale(axes, config.width_multiplier)
            yield name, torch.randn(shape, generator=generator).mul_(std)
        else:
            yield name, torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
