"""A trained model's weights as the weights of a wider one: the published ways, by name.

symmetric, diagonal     HyperCloning (Samragh et al. 2024); diagonal is also Staged Training (Shen et al. 2022)
unequal                 copies of an input take unequal shares, which separates them in training (after LEMON, 2024)
net2net                 random copies of hidden features and heads, regular ones of the stream (Chen et al. 2016)
fpi                     random copies everywhere (bert2BERT, Chen et al. 2022): not exact, norms see other statistics
aki                     fpi, with the added rows taken from the next block (ditto): not exact on purpose
Noise (`snr_db`) joins symmetric, diagonal and unequal. Without it, symmetric copies receive equal gradients and never
separate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from hotplate.model.axes import Axes, parameter_axes
from hotplate.model.config import ModelConfig
from hotplate.model.growth import expand
from hotplate.model.growth.expand import Layout, Mixing, Noise
from hotplate.model.growth.factors import Factors, grown_config
from hotplate.model.growth.maps import AxisMap, copied_axes, randomly_chosen_axes, unchanged_axes
from hotplate.model.lm import LanguageModel

Name = Literal["symmetric", "diagonal", "unequal", "net2net", "fpi", "aki"]
MIXING: dict[str, Mixing] = {"symmetric": expand.symmetric, "diagonal": expand.diagonal, "unequal": expand.unequal}
EXACT = ("symmetric", "diagonal", "unequal", "net2net")
DEFAULT_SNR_DB = 10.0  # the published ablation's


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How added features get their weights."""

    name: Name = "symmetric"
    """symmetric, diagonal, unequal, net2net, fpi or aki"""
    snr_db: float | None = DEFAULT_SNR_DB
    """power of the weights over that of the zero-sum noise added to them, in dB; none or inf = no noise"""
    seed: int = 0
    """of the noise and of random choices"""

    def __post_init__(self) -> None:
        if self.snr_db == math.inf:  # how a TOML file says it
            object.__setattr__(self, "snr_db", None)

    @property
    def noisy(self) -> bool:
        """Random choices separate the copies by themselves: noise joins the regular strategies only."""
        return self.snr_db is not None and self.name in MIXING


@lru_cache(maxsize=64)
def declared_axes(config: ModelConfig) -> Mapping[str, Axes]:
    """Every parameter of a model by name with its axes, in the model's order."""
    with torch.device("meta"):
        return {name: axes for name, (_, axes) in parameter_axes(LanguageModel(config)).items()}


def multiplicities(config: ModelConfig, factors: Factors) -> dict[str, int]:
    """Copies of each axis by name."""
    q = factors.head_width
    return {
        "residual": factors.width,
        "ffn": factors.ffn,
        "head": factors.heads,
        "heads": factors.heads * q,
        "kv_heads": factors.kv(config) * q,
        "head_width": q,
        **dict.fromkeys(unchanged_axes(config), 1),
    }


def layouts(config: ModelConfig, factors: Factors, strategy: Strategy) -> dict[str, Layout]:
    """Every parameter's layout in the grown model."""
    maps, counts = axis_maps(config, factors, strategy), multiplicities(config, factors)
    return {name: expand.layout(axes, maps, counts) for name, axes in declared_axes(config).items()}


def axis_maps(config: ModelConfig, factors: Factors, strategy: Strategy) -> dict[str, AxisMap]:
    """Every axis with its map under the strategy."""
    copies = copied_axes(config, factors)
    if strategy.name in MIXING:
        return copies
    generator = torch.Generator().manual_seed(strategy.seed)
    chosen = randomly_chosen_axes(config, factors, generator)
    return {**chosen, "residual": copies["residual"]} if strategy.name == "net2net" else chosen


def widen(
    weights: Mapping[str, Tensor], config: ModelConfig, factors: Factors, strategy: Strategy
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The wider model's config and weights, computed in float64 and returned in the dtype of `weights`.

    `factors.depth` is for `depth.deepen`. ValueError where the function cannot be kept, or a weight is missing.
    """
    wide = grown_config(config, Factors(**{**vars(factors), "depth": 1}))
    axes, where = declared_axes(config), layouts(config, factors, strategy)
    if missing := set(axes) ^ set(weights):
        raise ValueError(f"growth: weights and config disagree about {sorted(missing)[:3]}")
    mixing = MIXING.get(strategy.name, expand.symmetric)
    noise = Noise(strategy.snr_db, strategy.seed) if strategy.noisy and strategy.snr_db is not None else None
    grown = {n: expand.weight(n, weights[n], axes[n], where[n], mixing, noise) for n in axes}
    if strategy.name == "aki":
        grown = _rows_of_next_block(grown, axes, where, config.layers)
    return wide, {name: x.to(weights[name].dtype) for name, x in grown.items()}


def _rows_of_next_block(
    grown: Mapping[str, Tensor], axes: Mapping[str, Axes], where: Mapping[str, Layout], layers: int
) -> dict[str, Tensor]:
    """Projections whose added features are those of the same projection one block later; the last block's own."""
    mixed = dict(grown)
    for name, declared in axes.items():
        prefix, _, rest = name.partition(".")
        if prefix != "blocks" or not (declared.matrix or declared.blocks):
            continue
        layer, _, tail = rest.partition(".")
        later = f"blocks.{min(int(layer) + 1, layers - 1)}.{tail}"
        shape = [1] * grown[name].dim()
        shape[declared.writes] = -1
        added = (where[name].maps[declared.writes].copy > 0).reshape(shape)
        mixed[name] = torch.where(added, grown[later], grown[name])
    return mixed
