"""The definition of causal attention, with the whole mask and the whole score matrix.

Letters: B rows, T queries, S keys of a row, H query heads, K head width, N documents.
"""

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
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    B, T, H, _ = q.shape
    groups = H // k.shape[2]
    k_wide, v_wide = (x.to(wide).repeat_interleave(groups, dim=2) for x in (k, v))
    scores = scale * torch.einsum("bthk,bshk->bhts", q.to(wide), k_wide)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = visible(B, T, k.shape[1], cu_seqlens, q.device, window)[:, None]
    scores = scores.masked_fill(~seen, float("-inf"))
    out = torch.einsum("bhts,bshk->bthk", torch.softmax(scores, dim=-1), v_wide)
    return out.to(q.dtype), torch.logsumexp(scores, dim=-1)
