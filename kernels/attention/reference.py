"""The definition of causal attention, with the whole mask and the whole score matrix.

Letters: B rows, T queries, S keys of a row, H query heads, K head width, N documents.
"""

import torch
from torch import Tensor


def visible(B: int, T: int, S: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """bool [B or 1, T, S]: query t may look at key s, which is not later (aligned at the end), same document.

    Built on the device of its inputs from comparisons alone, so that a GPU is never waited for.
    """
    query = torch.arange(S - T, S, device=device)[:, None]
    causal = (torch.arange(S, device=device) <= query)[None]
    if cu_seqlens is None:
        return causal
    position = torch.arange(B * T, device=device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens[1:].contiguous(), position, right=True).view(B, T)
    return causal & (document[:, :, None] == document[:, None, :])


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, scale: float) -> Tensor:
    """out = softmax(scale q k^T where visible) v. Feed it float64 for the truth; gradients by autograd."""
    wide = torch.promote_types(q.dtype, torch.float32)
    B, T, H, _ = q.shape
    groups = H // k.shape[2]
    k_wide, v_wide = (x.to(wide).repeat_interleave(groups, dim=2) for x in (k, v))
    scores = scale * torch.einsum("bthk,bshk->bhts", q.to(wide), k_wide)
    seen = visible(B, T, k.shape[1], cu_seqlens, q.device)[:, None]
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
    return torch.einsum("bhts,bshk->bthk", weights, v_wide).to(q.dtype)
