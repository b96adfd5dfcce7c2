"""Deeper models from trained blocks.

stack        0 1 0 1 (G_stack, Du et al. 2024); interleave 0 0 1 1 (StackBERT's alternative): not exact
identity     each block is followed by copies of itself whose last projections are zero: exact (LLaMA-Pro, 2024)
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hotplate.model.config import ModelConfig

Depth = Literal["identity", "stack", "interleave"]
LAST = ("mixer.out.", "mlp.down.")  # what writes into the residual stream


def sources(layers: int, factor: int, kind: Depth) -> list[tuple[int, bool]]:
    """Per block of the deep model: the block it copies, and whether it is to change nothing at first."""
    if kind == "stack":
        return [(layer, False) for _ in range(factor) for layer in range(layers)]
    return [(layer, kind == "identity" and copy > 0) for layer in range(layers) for copy in range(factor)]


def deepen(
    weights: Mapping[str, Tensor], config: ModelConfig, factor: int, kind: Depth
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights of a model with `factor` times the blocks."""
    deep = {name: x for name, x in weights.items() if not name.startswith("blocks.")}
    for layer, (source, silent) in enumerate(sources(config.layers, factor, kind)):
        prefix = f"blocks.{source}."
        for name, x in weights.items():
            if name.startswith(prefix):
                tail = name.removeprefix(prefix)
                zero = silent and tail.startswith(LAST)
                deep[f"blocks.{layer}.{tail}"] = torch.zeros_like(x) if zero else x.clone()
    return replace(config, layers=config.layers * factor), deep
