"""Where documents lie, as the kernels walk them: edges, and lists of tiles that leave no program idle.

Letters: B rows, T queries, S keys of a row, N documents given, E documents after rows cut them, P tiles of a list.

A tile is `block` positions of one document. A grid of (longest document / block) x documents would be mostly empty
where a few documents are long and thousands are short; a list holds every tile once, those with most work first, so
that the last programs to start are the shortest. Its length is a bound that the host knows, so nothing waits for the
lengths: slots that are left over hold document -1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotplate.kernels.checks import want
from hotplate.kernels.launch import interpreting

BLOCKS = (64, 128)  # a list per number of positions that a program owns in most configurations


@dataclass(frozen=True, eq=False)
class Layout:
    """Made once per batch by `layout`, shared by all layers, in place of cu_seqlens. Equal to itself alone."""

    B: int
    T: int
    S: int
    cu_seqlens: Tensor | None  # int32 [N + 1] as given; None: a row is one document
    edges_q: Tensor  # int32 [E + 1] over the flattened B T queries, E = N + B
    edges_k: Tensor  # int32 [E + 1] over the flattened B S keys; edges_q itself where S = T
    tiles_q: tuple[Tensor, ...]  # per size of BLOCKS int32 [P, 2]: document, block within it; none on a CPU
    tiles_k: tuple[Tensor, ...]  # tiles_q itself where S = T


def most_tiles(positions: int, documents: int, block: int) -> int:
    """No packing of `positions` into `documents` has more tiles than this."""
    return min(positions, (positions + documents * (block - 1)) // block)


@torch.library.custom_op("hotplate::attention_tiles", mutates_args=())
def listed(edges: Tensor, positions: int, block: int) -> Tensor:
    """int32 [P, 2] of (document, block within it): the blocks deepest in their document first, then (-1, -1)."""
    from hotplate.kernels.attention import kernel_tiles

    return kernel_tiles.list_tiles(edges, most_tiles(positions, edges.shape[0] - 1, block), block)


@listed.register_fake
def _(edges: Tensor, positions: int, block: int) -> Tensor:
    return edges.new_empty(most_tiles(positions, edges.shape[0] - 1, block), 2)


def tile_lists(edges: Tensor, positions: int, blocks: Sequence[int]) -> tuple[Tensor, ...]:
    """A list for each size of blocks; none on a CPU, whose kernels need none, but in Triton's interpreter."""
    if edges.device.type == "cpu" and not interpreting():
        return ()
    return tuple(listed(edges, positions, block) for block in blocks)


def want_documents(cu_seqlens: Tensor, B: int, T: int, S: int, device: torch.device) -> None:
    """The contract of cu_seqlens in op.py; its values are looked at on a CPU alone."""
    want("attention", S == T, "S == T with cu_seqlens", f"S {S}, T {T}", "a cache has one document")
    one_axis = cu_seqlens.dtype == torch.int32 and cu_seqlens.ndim == 1 and len(cu_seqlens) >= 2
    want(
        "attention",
        one_axis and cu_seqlens.device == device,
        f"cu_seqlens int32 [N + 1] on {device}",
        f"{cu_seqlens.dtype} {list(cu_seqlens.shape)} on {cu_seqlens.device}",
        "one start per document, closed by B * T",
    )
    if cu_seqlens.device.type == "cpu":
        ordered = cu_seqlens[0] == 0 and cu_seqlens[-1] == B * T and (cu_seqlens.diff() >= 0).all()
        want(
            "attention",
            bool(ordered),
            f"cu_seqlens rising from 0 to B * T = {B * T}",
            str(cu_seqlens.tolist()[:8])[:-1] + (", ...]" if len(cu_seqlens) > 8 else "]"),
            "pad with B * T, not with 0",
        )


def _row_edges(B: int, T: int, device: torch.device) -> Tensor:
    return torch.arange(B + 1, device=device, dtype=torch.int32) * T


def layout(
    cu_seqlens: Tensor | None,
    B: int,
    T: int,
    S: int | None = None,
    *,
    device: torch.device | None = None,
) -> Layout:
    """Of B rows of T queries and S keys (None: S = T). cu_seqlens as `attention` takes it; it needs S = T.

    Some ten small operations on the device, without a wait: make it once per batch. ValueError as `attention`.
    """
    S = T if S is None else S
    if cu_seqlens is not None:
        want_documents(cu_seqlens, B, T, S, cu_seqlens.device)
        device = cu_seqlens.device
    rows = _row_edges(B, T, device or torch.device("cpu"))
    edges = rows if cu_seqlens is None else torch.cat([cu_seqlens, rows[1:]]).sort().values
    keys = edges if S == T else _row_edges(B, S, edges.device)
    tiles = tile_lists(edges, B * T, BLOCKS)
    tiles_k = tiles if S == T else tile_lists(keys, B * S, BLOCKS)
    return Layout(B, T, S, cu_seqlens, edges, keys, tiles, tiles_k)
