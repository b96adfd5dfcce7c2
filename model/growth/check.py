"""What growth did to a model: whether it kept the function, and whether its copies can separate.

Letters: B rows, T steps, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.growth.depth import Depth, sources
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.grow import grow
from hotplate.model.growth.strategies import Strategy, axis_maps, declared_axes, layouts
from hotplate.model.lm import LanguageModel

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
RANK_SHARE = 1e-3  # of the largest singular value: what counts as a direction


@dataclass(frozen=True)
class LogitError:
    """Small and grown model in one dtype on the same tokens."""

    largest: float
    largest_logit: float
    same_argmax: float  # share of positions


@dataclass(frozen=True)
class Symmetry:
    """How alike the copies of a grown matrix's output features are; 1.0 and they learn the same for ever."""

    name: str
    cosine: float  # mean over pairs of rows that copy one source
    rank: float  # singular values above RANK_SHARE of the largest, as a share of the smaller side


@dataclass(frozen=True)
class Report:
    """The whole check; `layers` are largest differences of each small block's output, as shares of its largest."""

    parameters: tuple[int, int]
    logits: dict[str, LogitError]
    layers: list[float]
    symmetry: list[Symmetry]


def check(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    factors: Factors,
    strategy: Strategy,
    depth: Depth,
    tokens: Tensor,
) -> Report:
    """Grow in float64 and compare on tokens int64 [B, T], in float64, float32 and bfloat16. `weights` as for `grow`."""
    wide = {name: x.double() for name, x in weights.items()}
    large, grown = grow(wide, config, factors, strategy, depth)
    errors, layers = {}, []
    for dtype in DTYPES:
        small_logits, small_blocks = _forward(config, wide, tokens, dtype)
        large_logits, large_blocks = _forward(large, grown, tokens, dtype)
        agree = (small_logits.argmax(-1) == large_logits.argmax(-1)).double().mean()
        errors[str(dtype).removeprefix("torch.")] = LogitError(
            (large_logits - small_logits).abs().max().item(), small_logits.abs().max().item(), agree.item()
        )
        if dtype == torch.float64:
            residual = axis_maps(config, factors, strategy)["residual"]
            kept = {source: layer for layer, (source, _) in enumerate(sources(config.layers, factors.depth, depth))}
            for source, before in enumerate(small_blocks):
                copies = before.index_select(-1, residual.source)
                difference = (large_blocks[kept[source]] - copies).abs().max()
                layers.append((difference / copies.abs().max()).item())
    counts = tuple(sum(x.numel() for x in part.values()) for part in (wide, grown))
    return Report((counts[0], counts[1]), errors, layers, symmetry(grown, config, factors, strategy))


def symmetry(grown: Mapping[str, Tensor], config: ModelConfig, factors: Factors, strategy: Strategy) -> list[Symmetry]:
    """Of the hidden matrices of the first block whose outputs have copies; `grown` may have been trained since."""
    where, axes = layouts(config, factors, strategy), declared_axes(config)
    found = []
    for name, x in grown.items():
        if not name.startswith("blocks.0.") or not axes[name].hidden_matrix or x.dim() != 2:
            continue
        source = where[name].maps[0].source
        order = source.argsort(stable=True)
        pairs = source[order][1:] == source[order][:-1]
        if not pairs.any():
            continue
        rows = torch.nn.functional.normalize(x.double(), dim=1)[order]
        cosine = (rows[1:] * rows[:-1]).sum(1)[pairs].mean().item()
        values = torch.linalg.svdvals(x.double())
        found.append(Symmetry(name, cosine, (values > RANK_SHARE * values[0]).double().mean().item()))
    return found


@torch.no_grad()
def _forward(
    config: ModelConfig, weights: Mapping[str, Tensor], tokens: Tensor, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, T, V] and every block's output, in float64."""
    model = LanguageModel.build(config, 0, dtype=dtype)
    model.load_state_dict({name: x.to(dtype) for name, x in weights.items()})
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append((output[0] + output[1]).double()))
    zeros = torch.zeros(tokens.shape, dtype=torch.int32)
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), positions, zeros)
    hidden, _ = model.hidden(batch)
    return model.logits(hidden).double(), outputs
