"""Causal attention over rows, packed documents or a cache: contract, checks, choice of implementation.

Letters: B rows, T queries, S keys of a row, H query heads, Hkv key and value heads, K head width,
N documents.
"""

import torch
from torch import Tensor

from hotplate.kernels.attention import eager, reference
from hotplate.kernels.checks import choose, want, want_float

IMPLS = {"eager": eager.attention, "reference": reference.attention}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """out = softmax(scale q k^T) v over the keys a query may see; scale None = K ** -0.5.

    q [B, T, H, K], k and v [B, S, Hkv, K] of one dtype (bf16|fp16|fp32|fp64), any strides, Hkv divides H:
    query head h reads key head h // (H / Hkv). S >= T; query t sees keys s <= t + S - T (queries are the end
    of the keys, as in decoding with a cache).
    cu_seqlens int32 [N + 1] or None, needs S == T: document n is [cu[n], cu[n + 1]) of the flattened B * T
    positions, from 0 to B * T, empty documents anywhere; a query sees its own document only, and a document
    never continues into the next row. None: a row is one document.
    Returns [B, T, H, K] in the dtype of q. Softmax in fp32 (fp64). Gradients to q, k and v.
    Flops: 2 B H T S K forward and 5 B H T S K backward when T == S (half of the square is masked).
    ValueError on any other shape, dtype or impl, and on CPU also on unordered cu_seqlens: a GPU is not
    stopped to look at the values. Source: Vaswani et al. 2017; grouped heads Ainslie et al. 2023.
    """
    function = choose("attention", impl, IMPLS)
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    want("attention", fits, "q [B, T, H, K], k and v [B, S, Hkv, K]", shapes, "heads are the third axis")
    want("attention", 0 < q.shape[1] <= k.shape[1], "1 <= T <= S", shapes, "keys include those of the queries")
    want("attention", q.shape[2] % k.shape[2] == 0, "H a multiple of Hkv", shapes, "repeat or drop key heads")
    want_float("attention", "q", q)
    same = q.dtype == k.dtype == v.dtype and q.device == k.device == v.device
    facts = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
    want("attention", same, "q, k and v of one dtype and device", facts, "convert them")
    if cu_seqlens is not None:
        _want_documents(q, k, cu_seqlens)
    return function(q, k, v, cu_seqlens, q.shape[3] ** -0.5 if scale is None else scale)


def _want_documents(q: Tensor, k: Tensor, cu_seqlens: Tensor) -> None:
    B, T = q.shape[:2]
    want(
        "attention",
        k.shape[1] == T,
        "S == T with cu_seqlens",
        f"S {k.shape[1]}, T {T}",
        "a cache has one document",
    )
    want(
        "attention",
        cu_seqlens.dtype == torch.int32
        and cu_seqlens.ndim == 1
        and len(cu_seqlens) >= 2
        and cu_seqlens.device == q.device,
        f"cu_seqlens int32 [N + 1] on {q.device}",
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
