"""Causal attention through torch.nn.functional.scaled_dot_product_attention.

Letters: B rows, T queries, S keys of a row, H query heads, K head width, N documents.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hotplate.kernels.attention.reference import visible


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """One fused call on [B, T, H, K] layouts; mask is bool [B or 1, T, S]."""
    out = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None],
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _spans(cu_seqlens: Tensor, B: int, T: int) -> list[tuple[int, int]]:
    """[start, stop) over the flattened [B T] of each piece of a document within a row, in order."""
    edges = sorted({*cu_seqlens.tolist(), *range(0, B * T + 1, T)})
    return list(zip(edges, edges[1:], strict=False))


def _by_document(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """A call per document: no masked score is computed, the work is the sum of the squared lengths."""
    B, T, H, K = q.shape
    spans = _spans(cu_seqlens, B, T)
    if len(spans) == B:
        return _dense(q, k, v, scale, None, is_causal=True)
    pieces = []
    for start, stop in spans:
        row, first = divmod(start, T)
        span = (slice(row, row + 1), slice(first, first + stop - start))
        pieces.append(_dense(q[span], k[span], v[span], scale, None, is_causal=True)[0])
    return torch.cat(pieces).view(B, T, H, K)


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, scale: float) -> Tensor:
    """See op.py. On a GPU documents are masked, not looped over: their lengths stay on the device."""
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    if cu_seqlens is not None:
        if q.device.type == "cpu":
            return _by_document(q, k, v, cu_seqlens, scale)
        return _dense(q, k, v, scale, visible(B, T, S, cu_seqlens, q.device), is_causal=False)
    if T == 1:
        return _dense(q, k, v, scale, None, is_causal=False)
    if T == S:
        return _dense(q, k, v, scale, None, is_causal=True)
    return _dense(q, k, v, scale, visible(B, T, S, None, q.device), is_causal=False)
