"""The definition of causal attention, with the whole mask and the whole score matrix of each document.

Letters: B rows, T queries, S keys of a row, H query heads, K head width, N documents.
"""

from itertools import pairwise

import torch
from torch import Tensor


def visible(
    B: int, T: int, S: int, cu_seqlens: Tensor | None, device: torch.device, window: int | None = None
) -> Tensor:
    """bool [B or 1, T, S]: query t may look at key s, which is not later (aligned at the end), same document, within
    the window.

    Built on the device of its inputs from comparisons alone, so that a GPU is never waited for.
    """
    query, key = torch.arange(S - T, S, device=device)[:, None], torch.arange(S, device=device)
    seen = (key <= query)[None]
    if window is not None:
        seen = seen & (key > query - window)
    if cu_seqlens is None:
        return seen
    position = torch.arange(B * T, device=device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens[1:].contiguous(), position, right=True).view(B, T)
    return seen & (document[:, :, None] == document[:, None, :])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(s) v and log(sum(exp(s))), s = scale q k^T, bent to softcap tanh(s / softcap), where visible.

    Feed it float64 for the truth; gradients by autograd. Returns [B, T, H, K] and [B, H, T] in fp32 (fp64).
    A document is computed by itself: packed or alone, its bits are the same.
    """
    if cu_seqlens is None:
        return _rows(q, k, v, scale, window, softcap)
    (B, T), (queries, keys, values) = q.shape[:2], (x.flatten(0, 1)[None] for x in (q, k, v))
    edges = sorted({*cu_seqlens.tolist(), *range(0, (B + 1) * T, T)})  # no document continues into the next row
    spans = [slice(start, stop) for start, stop in pairwise(edges)]
    alone = [_rows(queries[:, at], keys[:, at], values[:, at], scale, window, softcap) for at in spans]
    out = torch.cat([out for out, _ in alone], 1).view_as(q)
    return out, torch.cat([lse for _, lse in alone], 2).view(q.shape[2], *q.shape[:2]).transpose(0, 1)


def _rows(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Every row is one document."""
    wide = torch.promote_types(q.dtype, torch.float32)
    B, T, H, _ = q.shape
    groups = H // k.shape[2]
    k_wide, v_wide = (x.to(wide).repeat_interleave(groups, dim=2) for x in (k, v))
    scores = scale * torch.einsum("bthk,bshk->bhts", q.to(wide), k_wide)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = visible(B, T, k.shape[1], None, q.device, window)[:, None]
    scores = scores.masked_fill(~seen, float("-inf"))
    out = torch.einsum("bhts,bshk->bthk", torch.softmax(scores, dim=-1), v_wide)
    return out.to(q.dtype), torch.logsumexp(scores, dim=-1)
