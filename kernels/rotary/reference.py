"""The definition of cutting a projection into queries, keys and values, with head norms and rotary positions.

Letters: B rows, T steps, H query heads, G key and value heads, K head width.
"""

import torch
from torch import Tensor


def _head(x: Tensor, cosine: Tensor | None, sine: Tensor | None, weight: Tensor | None, eps: float) -> Tensor:
    """x [B, T, N, K] -> the same: R (weight x / rms(x)), in fp32 or wider, rounded once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if weight is not None:
        wide = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.to(wide.dtype)
    if cosine is not None and sine is not None:
        first, second = wide.chunk(2, dim=-1)
        c, s = cosine[:, :, None], sine[:, :, None]
        wide = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    return wide.to(x.dtype)


def cut_heads(
    qkv: Tensor,
    heads: int,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, T, H, K], k and v [B, T, G, K] from qkv [B, T, H + 2 G, K]. Float64 for the truth."""
    groups = (qkv.shape[2] - heads) // 2
    q, k, v = qkv.split([heads, groups, groups], dim=2)
    return _head(q, cosine, sine, q_weight, eps), _head(k, cosine, sine, k_weight, eps), v
