"""Growing: one call from a trained model to a larger one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hotplate.model.config import ModelConfig
from hotplate.model.growth import expand
from hotplate.model.growth.depth import Depth, deepen, sources
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.maps import copied_axes, select, unchanged_axes, within_heads
from hotplate.model.growth.strategies import Strategy, declared_axes, widen
from hotplate.model.state import State


def grow(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    factors: Factors,
    strategy: Strategy | None = None,
    depth: Depth = "identity",
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights of the model grown by `factors`; width first, then depth.

    weights: every parameter by name, fp32 or fp64 (the optimiser's master weights where the model is narrower).
    ValueError where the function cannot be kept, or weights and config do not belong together.
    """
    wide, grown = widen(weights, config, factors, strategy or Strategy())
    return deepen(grown, wide, factors.depth, depth)


def grow_recurrent_state(state: State, config: ModelConfig, factors: Factors, depth: Depth = "identity") -> State:
    """Copies of a carried state, feature by feature; blocks that start as identities start from zero."""
    maps = copied_axes(config, factors)

    def copied(x: Tensor) -> Tensor:
        if x.dim() == 3:  # [B, heads, head_width]
            picks = maps["head"].source.to(x.device), maps["head_width"].source.to(x.device)
            return x.index_select(1, picks[0]).index_select(2, picks[1])
        return x.index_select(1, maps["heads"].source.to(x.device))

    wide = state.map(copied)
    layers = [
        {name: torch.zeros_like(x) if silent else x.clone() for name, x in wide.layers[source].items()}
        for source, silent in sources(config.layers, factors.depth, depth)
    ]
    return State(tuple(layers))


def shrink(weights: Mapping[str, Tensor], config: ModelConfig, small: ModelConfig) -> dict[str, Tensor]:
    """Weights of a smaller model: evenly spaced features and heads of a larger one, its first blocks (weight
    selection, Xu et al. 2024). A start, not the same function. ValueError where `small` does not fit into `config`."""
    mixer, less = config.mixer, small.mixer
    pairs = {
        "residual": (config.width, small.width),
        "ffn": (config.ffn, small.ffn),
        "head": (mixer.heads, less.heads),
        "kv_heads": (mixer.groups, less.groups),
        "head_width": (mixer.head_width, less.head_width),
        "layers": (config.layers, small.layers),
    }
    if wrong := [f"{name} {b} of {a}" for name, (a, b) in pairs.items() if b > a]:
        raise ValueError(f"shrink: want sizes at most the large model's, got {', '.join(wrong)}")
    maps = {name: select(*sizes) for name, sizes in pairs.items()}
    for name, heads in (("heads", maps["head"]), ("kv_heads", maps["kv_heads"])):
        maps[name] = within_heads(heads, maps["head_width"], mixer.head_width)
    maps |= unchanged_axes(config)
    selected = {}
    for name, axes in declared_axes(small).items():
        if name not in weights:
            raise ValueError(f"shrink: the large model has no {name}; want configs that differ in their sizes only")
        large = declared_axes(config)[name]
        where = expand.layout(large, maps, dict.fromkeys(maps, 1))
        if [block.size for block in where.blocks] != list(axes.blocks or where.rows):
            raise ValueError(f"shrink: {name} does not fit; want configs that differ in their sizes only")
        selected[name] = expand.repeat(weights[name], where, (1.0,) * len(where.blocks)).to(weights[name].dtype)
    return selected
