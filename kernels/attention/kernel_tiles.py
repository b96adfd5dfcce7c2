"""The list of tiles of packed documents (tiles.py) in one launch.

A program finds the documents of D tiles by adding up the tiles of documents before, and their places in the list by
counting the tiles that are deeper: no sort, nothing that one program waits for another with. Importing this needs
Triton.
"""

import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.launch import launch

LISTED, DOCUMENTS, WARPS = 32, 128, 4  # tiles of a program, and documents that it takes at a time


@triton.jit
def tiles_of(edges, document, E, block):
    """Tiles of some documents; 0 behind the last."""
    begin = tl.load(edges + document, mask=document < E, other=0)
    end = tl.load(edges + document + 1, mask=document < E, other=0)
    return (end - begin + block - 1) // block


@triton.jit
def list_kernel(edges, tiles, E, P, block, D: tl.constexpr, N: tl.constexpr):
    """tiles int32 [P, 2]: document and block within it, deepest blocks first, documents in order among equals, then
    (-1, -1). edges int32 [E + 1]. N documents at a time."""
    slot = tl.program_id(0) * D + tl.arange(0, D)
    document = tl.zeros([D], tl.int32)
    start = tl.zeros([D], tl.int32)  # the document's first slot, documents in order
    total = 0
    for first in tl.range(0, E, N):
        others = first + tl.arange(0, N)
        count = tiles_of(edges, others, E, block)
        end = total + tl.cumsum(count, 0)
        before = (end[None, :] <= slot[:, None]) & (others < E)[None, :]
        document += tl.sum(before.to(tl.int32), 1)
        start = tl.maximum(start, tl.max(tl.where(before, end[None, :], 0), 1))
        total += tl.sum(count, 0)
    depth = slot - start
    place = tl.zeros([D], tl.int32)
    for first in tl.range(0, E, N):
        others = first + tl.arange(0, N)
        deeper = tiles_of(edges, others, E, block)[None, :] - depth[:, None]  # tiles of another from this depth on
        place += tl.sum(tl.maximum(deeper - 1, 0), 1)
        place += tl.sum(((deeper > 0) & (others[None, :] < document[:, None])).to(tl.int32), 1)
    there = slot < total
    at = tiles + 2 * tl.where(there, place, slot)
    tl.store(at, tl.where(there, document, -1), mask=slot < P)
    tl.store(at + 1, tl.where(there, depth, -1), mask=slot < P)


def list_tiles(edges: Tensor, P: int, block: int) -> Tensor:
    """int32 [P, 2] of edges int32 [E + 1]; P is at least the number of tiles (tiles.most_tiles)."""
    tiles = edges.new_empty(P, 2)
    grid = triton.cdiv(P, LISTED)
    launch(list_kernel, edges, grid, edges, tiles, edges.shape[0] - 1, P, block, D=LISTED, N=DOCUMENTS, num_warps=WARPS)
    return tiles
