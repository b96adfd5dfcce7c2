"""Projections to be cut into heads, and the forms that cut them, for the tests of rotary on either side.

Letters: B rows, T steps, H query heads, G key and value heads, K head width.
"""

from collections.abc import Sequence

import torch
from numerics import Op
from torch import Tensor

from hotplate.kernels.rotary import cut_heads, rotation


def inputs(shape: Sequence[int], normed: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """qkv of shape (B, T, H, G, K), and the weights of queries and keys."""
    B, T, H, G, K = shape
    weights = [(0.5 + torch.rand(K)).to(dtype) for _ in range(2 if normed else 0)]
    return [torch.randn(B, T, H + 2 * G, K).to(dtype), *weights]


def form(shape: Sequence[int], turned: bool, impl: str) -> Op:
    """cut_heads of qkv and weights, turned by the positions of documents of four steps."""
    B, T, H, _, K = shape
    turn = rotation(torch.arange(T).repeat(B, 1) % 4, K, 1e4) if turned else None
    return lambda qkv, *weights: cut_heads(qkv, H, turn, *weights, eps=1e-3, impl=impl)
