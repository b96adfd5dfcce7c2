"""Causal attention in plain torch: torch's fused attention per document, explicit blocks for what it lacks.

Letters: B rows, T queries, S keys of a row, H query heads, Hkv key heads, K head width, G documents of one length,
L that length.
"""

from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hotplate.kernels.attention import reference
from hotplate.kernels.attention.problem import Call, Result

SHORT, STEP = 64, 8  # documents up to SHORT are padded to a multiple of STEP and computed together
BLOCK = 128  # queries whose scores exist at a time, in the explicit form


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """One call of torch on [B, T, H, K] layouts; mask is bool [B or 1, T, S]."""
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


def _explicit(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Result:
    """Queries in blocks, each against the keys that it sees; rows are documents."""
    (B, T, H, K), (S, Hkv) = q.shape, k.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    q_wide = q.to(wide).reshape(B, T, Hkv, H // Hkv, K).permute(0, 2, 3, 1, 4)
    k_wide, v_wide = (x.to(wide).permute(0, 2, 1, 3)[:, :, None] for x in (k, v))
    outs, lses = [], []
    for first in range(0, T, BLOCK):
        last = min(T, first + BLOCK)
        low, high = first + S - T, last + S - T  # positions among the keys
        begin = 0 if window is None else max(0, low - window + 1)
        scores = scale * (q_wide[..., first:last, :] @ k_wide[..., begin:high, :].transpose(-1, -2))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        query, key = torch.arange(low, high)[:, None], torch.arange(begin, high)
        hidden = key > query if window is None else (key > query) | (key <= query - window)
        scores = scores.masked_fill(hidden.to(q.device), float("-inf"))
        outs.append(torch.softmax(scores, dim=-1) @ v_wide[..., begin:high, :])
        lses.append(torch.logsumexp(scores, dim=-1))
    out = torch.cat(outs, dim=3).permute(0, 3, 1, 2, 4).reshape(B, T, H, K).to(q.dtype)
    return out, torch.cat(lses, dim=3).reshape(B, H, T)


def _documents(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Result:
    """Rows that are documents, T = S; lse is only there in the explicit form."""
    if call.window is None and call.softcap is None and not call.lse:
        return _fused(q, k, v, call.scale, None, is_causal=True), None
    return _explicit(q, k, v, call.scale, call.window, call.softcap)


def _spans(cu_seqlens: Tensor, B: int, T: int) -> list[tuple[int, int]]:
    """(start, length) over the flattened [B T] of each piece of a document within a row, in order."""
    edges = sorted({*cu_seqlens.tolist(), *range(0, B * T + 1, T)})
    return [(start, stop - start) for start, stop in zip(edges, edges[1:], strict=False)]


def _padded(length: int) -> int:
    return length if length > SHORT else -(-length // STEP) * STEP


def _packed(call: Call, cu_seqlens: Tensor) -> Result:
    """A call per length of document: no masked score is computed, the work is the sum of the squared lengths.

    Short documents are padded by repeating their last position. That needs no mask: padding comes after every real
    query, so none sees it, and what it computes is dropped.
    """
    B, T, H, K = call.q.shape
    spans = _spans(cu_seqlens, B, T)
    q, k, v = (x.flatten(0, 1) for x in (call.q, call.k, call.v))
    ordered = sorted(spans, key=lambda span: _padded(span[1]))
    groups = [(L, list(members)) for L, members in groupby(ordered, key=lambda span: _padded(span[1]))]
    places, real = (torch.cat(parts) for parts in zip(*(_places(members, L) for L, members in groups), strict=True))
    moved = ordered != spans or len(places) != B * T
    if moved:
        q, k, v = (x.index_select(0, places) for x in (q, k, v))
    sizes = [L * len(members) for L, members in groups]
    outs, lses = [], []
    for (L, members), *pieces in zip(groups, *(x.split(sizes) for x in (q, k, v)), strict=True):
        q_rows, k_rows, v_rows = (x.view(len(members), L, *x.shape[1:]) for x in pieces)
        out, lse = _documents(q_rows, k_rows, v_rows, call)
        outs.append(out.flatten(0, 1))
        lses.append(None if lse is None else lse.transpose(1, 2).flatten(0, 1))
    out, lse = torch.cat(outs), torch.cat([x for x in lses if x is not None]) if call.lse else None
    if moved:
        back = torch.empty(B * T, dtype=torch.int64)
        back[places[real]] = torch.arange(len(places))[real]
        out, lse = out.index_select(0, back), None if lse is None else lse.index_select(0, back)
    return out.view(B, T, H, K), None if lse is None else lse.view(B, T, H).transpose(1, 2)


def _places(members: list[tuple[int, int]], L: int) -> tuple[Tensor, Tensor]:
    """int64 [G L], the positions of G documents, each padded to L by its last one; and bool [G L], no padding."""
    starts, lengths = (x[:, None] for x in torch.tensor(members).unbind(1))
    within = torch.arange(L)
    return (starts + torch.minimum(within, lengths - 1)).flatten(), (within < lengths).flatten()


def attention(call: Call) -> Result:
    """See op.py. On a GPU documents are masked, not looped over: their lengths stay on the device."""
    q, k, v = call.q, call.k, call.v
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    cu_seqlens = call.cu_seqlens
    if cu_seqlens is not None and not q.is_cuda:
        return _packed(call, cu_seqlens)
    if cu_seqlens is not None and (call.softcap is not None or call.lse):
        return reference.attention(q, k, v, cu_seqlens, call.scale, call.window, call.softcap)
    if cu_seqlens is not None:
        mask = reference.visible(B, T, S, cu_seqlens, q.device, call.window)
        return _fused(q, k, v, call.scale, mask, is_causal=False), None
    if T == S:
        return _documents(q, k, v, call)
    if call.window is not None or call.softcap is not None or call.lse:
        return _explicit(q, k, v, call.scale, call.window, call.softcap)
    earlier = None if T == 1 else reference.visible(B, T, S, None, q.device)
    return _fused(q, k, v, call.scale, earlier, is_causal=False), None
