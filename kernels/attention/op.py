"""Causal attention over rows, packed documents or a cache: contract and checks; choice.py has the implementations.

Letters: B rows, T queries, S keys of a row, H query heads, Hkv key and value heads, K head width,
N documents.
"""

from typing import Literal, overload

from torch import Tensor

from hotplate.kernels.attention.choice import choose
from hotplate.kernels.attention.problem import Call
from hotplate.kernels.attention.tiles import Layout, want_documents
from hotplate.kernels.bias import received, want_bias
from hotplate.kernels.checks import want, want_float


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | Layout | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | Layout | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | Layout | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """out = softmax(s) v with s = scale q k^T over the keys a query may see; scale None = K ** -0.5.

    q [B, T, H, K], k and v [B, S, Hkv, K] of one dtype (bf16|fp16|fp32|fp64), any strides, Hkv divides H:
    query head h reads key head h // (H / Hkv). S >= T; query t sees keys s <= t + S - T (queries are the end
    of the keys, as in decoding with a cache).
    cu_seqlens int32 [N + 1] or None, needs S == T: document n is [cu[n], cu[n + 1]) of the flattened B * T
    positions, from 0 to B * T, empty documents anywhere; a query sees its own document only, and a document
    never continues into the next row. None: a row is one document. A Layout (see tiles.py) stands for it, made
    once per batch for all layers.
    window W >= 1: a query sees the last W of those keys, its own included. softcap c > 0: s becomes c tanh(s / c).
    Returns [B, T, H, K] in the dtype of q, and with return_lse log(sum(exp(s))) [B, H, T] in fp32 (fp64). Softmax in
    fp32 (fp64). Gradients to q, k and v, through lse too.
    impl: auto, triton (fp32, bf16, fp16; K <= 256), native (C on a CPU; fp32, bf16), flash, fa3, fa4, varlen, cudnn,
    flex, xformers, eager or reference; auto is a table (choice.py), a name never falls back.
    Flops: 2 B H T S K forward and 5 B H T S K backward when T == S (half of the square is masked).
    ValueError on any other shape, dtype or impl, on what the named impl cannot serve, and on CPU also on unordered
    cu_seqlens: a GPU is not stopped to look at the values.
    Source: Vaswani et al. 2017; grouped heads Ainslie et al. 2023; soft cap Gemma 2, 2024.
    """
    call = _call(q, k, v, cu_seqlens, scale, window, softcap, return_lse)
    out, lse = choose(impl, call).attend(call)
    if not return_lse:
        return out
    assert lse is not None, f"{impl} gave no lse"
    return out, lse


def self_attention(
    qkv: Tensor,
    heads: int,
    cu_seqlens: Tensor | Layout | None = None,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """attention of q, k and v that lie side by side, as one projection gives them: H = heads, G and G heads of qkv
    [B, T, H + 2 G, K]. Returns [B, T, H, K]. bias: None, or [H + 2 G, K] of any float dtype: what qkv has already, for
    its gradient alone (kernels/bias.py).

    In Triton the backward pass writes one gradient and adds it up for the bias; elsewhere autograd puts it together
    from three, which in 16 bits moves 4 (H + 2 G) K bytes more per position, and the bias takes a pass over it.
    ValueError as in attention, and for heads or a bias that do not fit qkv.
    """
    facts = f"{list(qkv.shape)} with heads {heads}"
    fits = qkv.ndim == 4 and 0 < heads < qkv.shape[2] and (qkv.shape[2] - heads) % 2 == 0
    want("attention", fits, "qkv [B, T, H + 2 G, K] with heads = H", facts, "stack queries, keys, values by heads")
    want_bias("attention", bias, qkv, 2)
    call = _joined(qkv, heads, cu_seqlens, scale, window, softcap, bias)
    backend = choose(impl, call)
    if bias is not None and not backend.biased:
        call = _joined(received(qkv, bias), heads, cu_seqlens, scale, window, softcap, None)
    return backend.attend(call)[0]


def _joined(
    qkv: Tensor,
    heads: int,
    documents: Tensor | Layout | None,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    bias: Tensor | None,
) -> Call:
    groups = (qkv.shape[2] - heads) // 2
    q, k, v = qkv.split([heads, groups, groups], dim=2)
    return _call(q, k, v, documents, scale, window, softcap, False, qkv, bias)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | Layout | None,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    lse: bool,
    qkv: Tensor | None = None,
    bias: Tensor | None = None,
) -> Call:
    """What is asked for, if it can be."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    want("attention", fits, "q [B, T, H, K], k and v [B, S, Hkv, K]", shapes, "heads are the third axis")
    want("attention", 0 < q.shape[1] <= k.shape[1], "1 <= T <= S", shapes, "keys include those of the queries")
    want("attention", q.shape[2] % k.shape[2] == 0, "H a multiple of Hkv", shapes, "repeat or drop key heads")
    want_float("attention", "q", q)
    same = q.dtype == k.dtype == v.dtype and q.device == k.device == v.device
    facts = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
    want("attention", same, "q, k and v of one dtype and device", facts, "convert them")
    want("attention", window is None or window >= 1, "window None or >= 1", str(window), "a query sees itself")
    want("attention", softcap is None or softcap > 0, "softcap None or > 0", str(softcap), "None means no cap")
    _want_places(q, k, documents)
    return Call(
        q=q,
        k=k,
        v=v,
        documents=documents,
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
        lse=lse,
        qkv=qkv,
        bias=bias,
    )


def _want_places(q: Tensor, k: Tensor, documents: Tensor | Layout | None) -> None:
    (B, T), S = q.shape[:2], k.shape[1]
    if isinstance(documents, Layout):
        sizes, device = (documents.B, documents.T, documents.S), documents.edges_q.device
        want(
            "attention",
            sizes == (B, T, S) and device == q.device,
            f"a layout of B {B}, T {T}, S {S} on {q.device}",
            f"one of {sizes} on {device}",
            "make one per batch",
        )
    elif documents is not None:
        want_documents(documents, B, T, S, q.device)
