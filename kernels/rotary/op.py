"""Rotary positions and head norms while a projection is cut into heads: contract, checks, choice of implementation.

Letters: B rows, T steps, H query heads, G key and value heads, K head width.
"""

import torch
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import choose_impl, operator
from hotplate.kernels.rotary import reference

Rotation = tuple[Tensor, Tensor]
# The module that registers a form's operator, and the operator's name; triton's is imported when it is asked for.
OPERATORS = {
    "native": ("hotplate.kernels.rotary.native", "rotary_native"),
    "triton": ("hotplate.kernels.rotary.streaming", "rotary"),
}
MAX_K = 1024  # a head is held in registers, or on C's stack


def rotation(positions: Tensor, head_width: int, theta: float, turning: int | None = None) -> Rotation:
    """Cosine and sine [B, T, K/2] in fp32 of angle position * theta^(-2j/R), for positions int [B, T].

    turning: R, the features of a head that turn, even; none = all K. Pairs from R/2 on have angle 0.
    Positions of packed documents start anew with each. One pair serves all layers of a forward pass.
    """
    R = head_width if turning is None else turning
    pairs = torch.arange(0, R, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-pairs / R)
    angles = torch.nn.functional.pad(angles, (0, (head_width - R) // 2))
    return angles.cos(), angles.sin()


def cut_heads(
    qkv: Tensor,
    heads: int,
    turn: Rotation | None = None,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """q = R norm(q'), k = R norm(k'), v = v' for (q', k', v') stacked along the heads of qkv, in one pass.

    qkv [B, T, H + 2 G, K] bf16|fp16|fp32|fp64, any strides, heads = H. turn: cosine and sine fp32 [B, T, K/2] of
    `rotation`; R turns each pair (x[j], x[j + K/2]) by its angle (half-split layout of GPT-NeoX, Llama); None: R = 1.
    q_weight and k_weight float [K], both or none: norm is RMSNorm over each head with that weight; none: the identity.
    Returns q [B, T, H, K], k and v [B, T, G, K], contiguous, in the dtype of qkv; arithmetic in fp32 (fp64), rounded
    once. The gradient (R transposed, then that of the norm) is exact; it goes to qkv and the weights. Without weights
    the backward keeps nothing of qkv. With neither rotation nor norm the results are views of qkv.
    impl: auto, eager, native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16) or reference. auto is triton on CUDA,
    native on a CPU where a C compiler is found, else eager; a name never falls back.
    Memory traffic at the least: every value of qkv read and written once, forward and backward (norm: read twice).
    ValueError on any other shape, dtype, device or impl. Source: Su et al. 2021, arXiv 2104.09864.
    """
    impl = choose_impl("rotary", impl, qkv)
    _check(qkv, heads, turn, q_weight, k_weight, eps)
    groups = (qkv.shape[2] - heads) // 2
    if turn is None and q_weight is None:
        q, k, v = qkv.split([heads, groups, groups], dim=2)
        return q, k, v
    cosine, sine = turn if turn is not None else (None, None)
    if impl in ("eager", "reference"):
        return reference.cut_heads(qkv, heads, cosine, sine, q_weight, k_weight, eps)
    want("rotary", qkv.shape[3] <= MAX_K, f"K <= {MAX_K}", str(qkv.shape[3]), "use impl='eager'")
    if cosine is not None and sine is not None:
        cosine, sine = cosine.contiguous(), sine.contiguous()
    return operator(*OPERATORS[impl])(qkv.contiguous(), heads, cosine, sine, q_weight, k_weight, eps)


def _check(
    qkv: Tensor, heads: int, turn: Rotation | None, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> None:
    want_float("rotary", "qkv", qkv)
    facts = f"{list(qkv.shape)} with heads {heads}"
    fits = qkv.ndim == 4 and 0 < heads < qkv.shape[2] and (qkv.shape[2] - heads) % 2 == 0
    want("rotary", fits, "qkv [B, T, H + 2 G, K] with heads = H", facts, "stack queries, keys, values along the heads")
    B, T, _, K = qkv.shape
    for table in turn or ():
        want("rotary", K % 2 == 0, "an even head width K", str(K), "positions turn pairs of features")
        facts = f"{table.dtype} {list(table.shape)} on {table.device}"
        holds = table.shape == (B, T, K // 2) and table.dtype == torch.float32 and table.device == qkv.device
        want("rotary", holds, f"cosine and sine float32 {[B, T, K // 2]} on {qkv.device}", facts, "use rotation()")
    want("rotary", (q_weight is None) == (k_weight is None), "q_weight and k_weight together", "one", "give both")
    for weight in (q_weight, k_weight):
        if weight is not None:
            facts = f"{weight.dtype} {list(weight.shape)} on {weight.device}"
            holds = weight.shape == (K,) and weight.is_floating_point() and weight.device == qkv.device
            want("rotary", holds, f"weights float [{K}] on {qkv.device}", facts, "one value per feature of a head")
    want("rotary", eps >= 0, "eps >= 0", str(eps), "leave it out")
