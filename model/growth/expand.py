"""One parameter, grown: W~ = M (x) W + N over the copies of its axes.

M has one row per copy of the written axis and one column per copy of the read axis; its rows sum to 1. N sums to zero
over the copies that a row reads. Copies of the input are equal, so both keep the function (HyperCloning, Samragh et al.
2024, section 3, in the general form).
Letters: O written features, I read features, n copies.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hotplate.model.axes import Axes
from hotplate.model.growth.maps import AxisMap, stacked

Mixing = Callable[[AxisMap, AxisMap], Tensor]  # (written, read) -> coefficients, broadcast over [O, I]


def symmetric(written: AxisMap, read: AxisMap) -> Tensor:
    """Every copy of an input takes an equal share: M = 1 / n."""
    return (1.0 / read.counts.double())[None, :]


def diagonal(written: AxisMap, read: AxisMap) -> Tensor:
    """Copy a of the output reads copy a of the input alone: M = I; symmetric where their numbers differ."""
    if written.copies != read.copies:
        return symmetric(written, read)
    return (written.copy[:, None] == read.copy[None, :]).double()


def unequal(written: AxisMap, read: AxisMap) -> Tensor:
    """Shares from 0.6 / n to 1.4 / n, turned by one from copy to copy of the output (after LEMON, Wang et al. 2024)."""
    n = read.copies
    if n == 1:
        return symmetric(written, read)
    shares = torch.linspace(0.6, 1.4, n, dtype=torch.float64) / n
    return shares[(read.copy[None, :] + written.copy[:, None]) % n]


@dataclass(frozen=True)
class Noise:
    """Zero-sum noise on every matrix whose input is copied, `snr_db` below the power of the weights it joins."""

    snr_db: float
    seed: int

    def draw(self, name: str, shape: torch.Size) -> Tensor:
        """The same numbers for a parameter whatever else is grown, and on every rank."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Layout:
    """The maps of one parameter's axes."""

    maps: tuple[AxisMap, ...]  # one per axis, blocks of axis 0 joined
    blocks: tuple[AxisMap, ...]  # of axis 0 one by one
    copies: tuple[int, ...]  # of what each block writes: a feature's gradient is shared among them
    scale: tuple[float, ...]  # of each block's values, from Axes.powers

    @property
    def rows(self) -> list[int]:
        return [block.size for block in self.blocks]


def layout(axes: Axes, maps: Mapping[str, AxisMap], multiplicity: Mapping[str, int]) -> Layout:
    """`multiplicity`: copies of each axis by name."""
    names = axes.stacked or axes.names[:1]
    blocks = tuple(maps[name] for name in names)
    first = stacked(blocks, axes.blocks) if axes.blocks else blocks[0]
    others = [name for k, name in enumerate(axes.names) if k and k != axes.reads]
    along = 1
    for name in others:
        along *= multiplicity[name]
    copies = tuple(along * (1 if axes.reads == 0 else multiplicity[name]) for name in names)
    powers = axes.powers or (None,) * len(names)
    scale = tuple(1.0 if power is None else multiplicity[power[0]] ** power[1] for power in powers)
    return Layout((first, *(maps[name] for name in axes.names[1:])), blocks, copies, scale)


def repeat(x: Tensor, where: Layout, per_block: tuple[float, ...]) -> Tensor:
    """Copies of x [*axes] in float64, each block of axis 0 times its factor."""
    grown = x.double()
    for axis, axis_map in enumerate(where.maps):
        grown = grown.index_select(axis, axis_map.source)
    factors = torch.tensor(per_block, dtype=torch.float64).repeat_interleave(torch.tensor(where.rows))
    return grown * factors.view(-1, *[1] * (x.dim() - 1))


def weight(name: str, x: Tensor, axes: Axes, where: Layout, mixing: Mixing, noise: Noise | None) -> Tensor:
    """The grown parameter in float64."""
    grown = repeat(x, where, where.scale)
    if axes.reads is None:
        return grown
    read = where.maps[axes.reads]
    shape = [1] * x.dim()
    shape[axes.reads] = read.size
    if axes.writes == 0:
        shape[0] = -1
        shares = [mixing(block, read).expand(block.size, -1) for block in where.blocks]
        coefficients = torch.cat(shares).reshape(shape)
    else:  # the written axis comes after the read one
        shape[axes.writes] = -1
        written = where.maps[axes.writes]
        coefficients = mixing(written, read).expand(written.size, -1).T.reshape(shape)
    grown = grown * coefficients
    if noise is None or read.copies == 1 or "vocab" in axes.names:
        return grown
    return grown + _zero_sum(noise, name, x, read, axes.reads, where)


def _zero_sum(noise: Noise, name: str, x: Tensor, read: AxisMap, axis: int, where: Layout) -> Tensor:
    """Noise that cancels over the copies of every read feature; per block at the asked power below W / n."""
    n = read.copies
    shape = torch.Size(axis_map.size for axis_map in where.maps)
    drawn = noise.draw(name, shape)
    sums = torch.zeros_like(drawn.narrow(axis, 0, x.shape[axis])).index_add_(axis, read.source, drawn)
    drawn -= (sums / n).index_select(axis, read.source)
    share = repeat(x, where, where.scale) / n
    parts = zip(drawn.split(where.rows), share.split(where.rows), strict=True)
    return torch.cat(
        [
            part * (signal.square().mean() / part.square().mean() / 10 ** (noise.snr_db / 10)).sqrt()
            for part, signal in parts
        ]
    )
