"""Which part of every parameter a rank holds, and how ranks divide what cannot be done by parts.

AdamW works on any elements. Muon orthogonalises whole matrices: each is done once, by one rank, and its result shared.
Letters: N elements of a parameter, R ranks.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from hotplate.kernels.total_norm import total_norm

Work = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # whole tensors to tensors of the same shapes


class Shares:
    """One rank, which holds everything and does everything."""

    def local(self, parameter: Tensor) -> Tensor:
        """The elements held here, sharing the parameter's memory."""
        return parameter

    def start(self, parameter: Tensor) -> int:
        """The first of them, in row-major order."""
        return 0

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """The gradient of the elements held here."""
        return parameter.grad

    def norm(self, gradients: Sequence[Tensor], device: torch.device) -> Tensor:
        """The norm over all elements of all parameters, fp32 []."""
        return _norm(gradients, device).float()

    def whole(self, local: Tensor, shape: Sequence[int]) -> Tensor:
        """A tensor of `shape` from the elements that all ranks hold, on every rank."""
        return local

    def apply(self, work: Work, parts: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """`work` on whole tensors of `shapes`, of which the local elements are `parts`; the local elements of what it
        gives."""
        return work(dict(parts))


def _norm(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """The norm over all elements, []."""
    if len({g.dtype for g in gradients}) > 1:
        narrow = [g.dtype != torch.float32 for g in gradients]
        kinds = [[g for g, held in zip(gradients, narrow, strict=True) if held is kind] for kind in (True, False)]
        return torch.linalg.vector_norm(torch.stack([total_norm(kind).double() for kind in kinds]))
    return total_norm(gradients) if gradients else torch.zeros((), device=device)


def owners(shapes: Mapping[str, Sequence[int]], ranks: int) -> dict[str, int]:
    """A rank for every matrix, so that products cost each about the same: the dearest first, to the least laden."""
    costs = {name: math.prod(shape) * min(shape[-2:]) for name, shape in shapes.items()}
    loads = [0] * ranks
    found = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        found[name] = loads.index(min(loads))
        loads[found[name]] += costs[name]
    return found


class Replicated(Shares):
    """Every rank holds everything; each does its share of the matrices and hands out the results."""

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world

    def apply(self, work: Work, parts: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        owner = owners(shapes, self._world)
        names = [[name for name in sorted(shapes) if owner[name] == rank] for rank in range(self._world)]
        mine = work({name: parts[name] for name in names[self._rank]})
        sizes = [sum(math.prod(shapes[name]) for name in held) for held in names]
        like = next(iter(parts.values()))
        flat = like.new_zeros(max(sizes))
        if mine:
            flat[: sizes[self._rank]] = torch.cat([mine[name].flatten() for name in names[self._rank]])
        rows = [torch.empty_like(flat) for _ in names]
        dist.all_gather(rows, flat)
        return {
            name: x
            for held, row in zip(names, rows, strict=True)
            for name, x in _cut(row, {name: shapes[name] for name in held}).items()
        }


class Sharded(Shares):
    """FSDP's layout: rank r holds rows r * ceil(rows / R) and on of every parameter. Whole matrices are put together
    where they are worked on, and only there."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank, self._ranks = dist.get_rank(group), dist.get_world_size(group)

    def local(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to_local()  # type: ignore[attr-defined]

    def start(self, parameter: Tensor) -> int:
        return self._span(parameter.shape, self._rank)[0]

    def gradient(self, parameter: Tensor) -> Tensor | None:
        return None if parameter.grad is None else parameter.grad.to_local()  # type: ignore[attr-defined]

    def norm(self, gradients: Sequence[Tensor], device: torch.device) -> Tensor:
        square = _norm(gradients, device).square()
        dist.all_reduce(square, group=self._group)
        return square.sqrt().float()

    def whole(self, local: Tensor, shape: Sequence[int]) -> Tensor:
        if not shape:
            return local
        most = self._span(shape, 0)[1]
        padded = torch.nn.functional.pad(local.flatten(), (0, most - local.numel()))
        rows = [torch.empty_like(padded) for _ in range(self._ranks)]
        dist.all_gather(rows, padded, group=self._group)
        return torch.cat(rows)[: math.prod(shape)].view(*shape)  # only trailing ranks hold less than the most

    def apply(self, work: Work, parts: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        owner = owners(shapes, self._ranks)
        names = [[name for name in sorted(shapes) if owner[name] == rank] for rank in range(self._ranks)]
        like = next(iter(parts.values()))
        spans = {name: [self._span(shape, rank) for rank in range(self._ranks)] for name, shape in shapes.items()}
        held = {name: [stop - start for start, stop in spans[name]] for name in shapes}
        sent = [sum(held[name][self._rank] for name in names[rank]) for rank in range(self._ranks)]
        received = [sum(held[name][rank] for name in names[self._rank]) for rank in range(self._ranks)]
        outgoing = torch.cat([parts[name].flatten() for rank_names in names for name in rank_names])
        incoming = like.new_empty(sum(received))
        dist.all_to_all_single(incoming, outgoing, received, sent, group=self._group)
        rows = incoming.split(received)
        pieces = [_cut(row, {n: (held[n][rank],) for n in names[self._rank]}) for rank, row in enumerate(rows)]
        whole = {n: torch.cat([piece[n] for piece in pieces]).view(*shapes[n]) for n in names[self._rank]}
        done = {name: x.flatten() for name, x in work(whole).items()}
        back = [done[n][slice(*spans[n][rank])] for rank in range(self._ranks) for n in names[self._rank]]
        returned = torch.empty_like(outgoing)
        dist.all_to_all_single(returned, torch.cat(back) if back else incoming, sent, received, group=self._group)
        order = {name: parts[name].shape for rank_names in names for name in rank_names}
        return _cut(returned, order)

    def _span(self, shape: Sequence[int], rank: int) -> tuple[int, int]:
        """Elements that `rank` holds of a parameter."""
        rows, size = shape[0], math.prod(shape[1:])
        each = -(-rows // self._ranks)
        return min(rank * each, rows) * size, min((rank + 1) * each, rows) * size


def _cut(flat: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors that lie one after another in `flat`."""
    found, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        found[name] = flat[start : start + size].view(*shape)
        start += size
    return found
