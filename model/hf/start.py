"""A model of other tokens on the body of a trained text model (TWIST, Hassid et al. 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hotplate.model.config import ModelConfig

TABLES = ("embedding.weight", "head.weight")


def with_vocabulary(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    vocab: int,
    rows: Literal["slice", "random"],
    seed: int,
    rope_theta: float | None = None,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights with `vocab` token ids; a tied head stays tied.

    rows: slice keeps the first `vocab` rows of the tables, random draws them anew from N(0, init_std). rope_theta: base
    wavelength of rotary positions, None keeps it. ValueError where there are not enough rows, or no rotation.
    """
    if vocab < 1 or (rows == "slice" and vocab > config.vocab):
        raise ValueError(f"want a vocabulary of 1..{config.vocab} rows to slice, got {vocab}; or draw them: random")
    if rope_theta is not None:
        if config.positions != "rotary":
            raise ValueError(f"rope_theta: this model has {config.positions} positions, none that rotate")
        config = replace(config, mixer=replace(config.mixer, rope_theta=rope_theta))
    generator = torch.Generator().manual_seed(seed)
    changed = dict(weights)
    for name in TABLES:
        if name not in weights:
            continue
        if rows == "slice":
            changed[name] = weights[name][:vocab].clone()
        else:
            drawn = torch.randn(vocab, config.width, generator=generator)
            changed[name] = drawn.mul_(config.init_std).to(weights[name].dtype)
    return replace(config, vocab=vocab), changed
