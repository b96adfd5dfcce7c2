"""Where each feature of a grown axis comes from.

Letters: n copies of an axis, H heads, G key/value heads, K head width; p copies of the heads, r of the key heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotplate.model.config import ModelConfig
from hotplate.model.growth.factors import Factors


@dataclass(frozen=True)
class AxisMap:
    """A grown axis, feature by feature: int64 [size] its source in the small axis, and which copy of it this is.

    Kept as indices, so that any layout (whole copies, copies inside each head or group, random choices) is the same
    algebra.
    """

    source: Tensor
    copy: Tensor

    @property
    def size(self) -> int:
        return len(self.source)

    @property
    def counts(self) -> Tensor:
        """int64 [size]: how many features share each feature's source."""
        return torch.bincount(self.source)[self.source]

    @property
    def copies(self) -> int:
        """How often every source occurs. ValueError where they differ (random choices)."""
        counts = self.counts
        if (counts != counts[0]).any():
            raise ValueError("growth: the sources of this axis do not occur equally often")
        return int(counts[0])


def identity(size: int) -> AxisMap:
    return AxisMap(torch.arange(size), torch.zeros(size, dtype=torch.long))


def tile(size: int, n: int) -> AxisMap:
    """[x; x; ...], n times."""
    return AxisMap(torch.arange(size).repeat(n), torch.arange(n).repeat_interleave(size))


def choose(size: int, n: int, generator: torch.Generator) -> AxisMap:
    """The features once, then (n - 1) size random ones of them (Net2Net; bert2BERT's FPI)."""
    source = torch.cat([torch.arange(size), torch.randint(size, ((n - 1) * size,), generator=generator)])
    copy = torch.empty_like(source)
    for old in range(size):
        places = (source == old).nonzero()[:, 0]
        copy[places] = torch.arange(len(places))
    return AxisMap(source, copy)


def select(size: int, wanted: int) -> AxisMap:
    """`wanted` of the features, evenly spaced (weight selection, large to small)."""
    even = size % wanted == 0
    picks = torch.arange(wanted) * (size // wanted) if even else torch.linspace(0, size - 1, wanted).round().long()
    return AxisMap(picks, torch.zeros(wanted, dtype=torch.long))


def within_heads(heads: AxisMap, features: AxisMap, K: int) -> AxisMap:
    """Features of all heads: every head of `heads` holds the features of `features`, which map one head of K."""
    source = heads.source[:, None] * K + features.source
    copy = heads.copy[:, None] * (int(features.copy.max()) + 1) + features.copy
    return AxisMap(source.flatten(), copy.flatten())


def grouped_heads(H: int, G: int, p: int, r: int) -> AxisMap:
    """Query heads when key/value heads are copied r times and query heads p times: order (r, G, p / r, H / G), so that
    every query head keeps the key head that it reads (query head i reads key head i // (H / G))."""
    outer, group, inner, member = torch.meshgrid(
        torch.arange(r), torch.arange(G), torch.arange(p // r), torch.arange(H // G), indexing="ij"
    )
    return AxisMap((group * (H // G) + member).flatten(), (outer * (p // r) + inner).flatten())


def copied_axes(old: ModelConfig, factors: Factors) -> dict[str, AxisMap]:
    """Every axis name of `model/axes.py` with its map, all sources equally often."""
    mixer = old.mixer
    H, K = mixer.heads, mixer.head_width
    G = mixer.groups if mixer.kind == "attention" else H
    r = factors.kv(old) if mixer.kind == "attention" else factors.heads
    heads, head_width = grouped_heads(H, G, factors.heads, r), tile(K, factors.head_width)
    return {
        "residual": tile(old.width, factors.width),
        "ffn": tile(old.ffn, factors.ffn),
        "head": heads,
        "heads": within_heads(heads, head_width, K),
        "kv_heads": within_heads(tile(G, r), head_width, K),
        "head_width": head_width,
        **unchanged_axes(old),
    }


def unchanged_axes(old: ModelConfig) -> dict[str, AxisMap]:
    """Axes that width growth leaves alone."""
    return {
        "vocab": identity(old.vocab),
        "position": identity(old.context),
        "gates": identity(4),
        "shared": identity(1),
    }


def randomly_chosen_axes(old: ModelConfig, factors: Factors, generator: torch.Generator) -> dict[str, AxisMap]:
    """Like `copied_axes`, with random sources for the added residual and hidden features and for whole heads."""
    maps = copied_axes(old, factors)
    if old.mixer.kind == "attention" and old.mixer.groups != old.mixer.heads:
        raise ValueError("growth: random choices of heads need as many key/value heads as heads; use copies")
    heads = choose(old.mixer.heads, factors.heads, generator)
    features = within_heads(heads, maps["head_width"], old.mixer.head_width)
    chosen = {"head": heads, "heads": features, "kv_heads": features, "ffn": choose(old.ffn, factors.ffn, generator)}
    return {**maps, **chosen, "residual": choose(old.width, factors.width, generator)}


def stacked(blocks: Sequence[AxisMap], sizes: Sequence[int]) -> AxisMap:
    """The map of blocks of `sizes` small features that lie one after the other along an axis."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    sources = [block.source + offset for block, offset in zip(blocks, offsets[:-1], strict=True)]
    return AxisMap(torch.cat(sources), torch.cat([block.copy for block in blocks]))
