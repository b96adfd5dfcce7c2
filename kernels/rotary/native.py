"""cut_heads in C, as an operator that is opaque to torch.compile. Tensors come contiguous.

Letters: M tokens, H query heads, G key and value heads, K head width, S stripes of tokens.
"""

import ctypes

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.launch import address
from hotplate.kernels.rotary import autograd

STRIPES = 16  # partial sums of the weights' gradients: enough for threads, whatever their number


def _library() -> ctypes.CDLL:
    library = native.load("rotary")
    assert library is not None, "op.py asks for native code only where it was built"
    return library


def _stacked(q_weight: Tensor | None, k_weight: Tensor | None) -> Tensor | None:
    return None if q_weight is None or k_weight is None else torch.stack([q_weight, k_weight]).float()


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v to be filled."""
    B, T, N, K = qkv.shape
    groups = (N - heads) // 2
    return qkv.new_empty(B, T, heads, K), qkv.new_empty(B, T, groups, K), qkv.new_empty(B, T, groups, K)


@torch.library.custom_op("hotplate::rotary_native", mutates_args=())
def operator(
    qkv: Tensor,
    heads: int,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v."""
    q, k, v = _heads(qkv, heads)
    weights = _stacked(q_weight, k_weight)
    B, T, G, K = k.shape
    _library().forward(
        *(address(x) for x in (qkv, cosine, sine, weights)),
        ctypes.c_float(eps),
        *(address(x) for x in (q, k, v)),
        *(ctypes.c_int64(n) for n in (B * T, heads, G, K)),
        *(ctypes.c_int(n) for n in (qkv.dtype == torch.bfloat16, torch.get_num_threads())),
    )
    return q, k, v


@operator.register_fake
def _(
    qkv: Tensor,
    heads: int,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _heads(qkv, heads)


@torch.library.custom_op("hotplate::rotary_native_backward", mutates_args=())
def backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor | None,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """dqkv, and the weights' gradients fp32 [2, K]."""
    B, T, H, K = dq.shape
    G, M = dk.shape[2], B * T
    S = max(1, min(STRIPES, M))
    dqkv, dweights = dq.new_empty(B, T, H + 2 * G, K), dq.new_zeros(S, 2, K, dtype=torch.float32)
    weights = _stacked(q_weight, k_weight)
    _library().backward(
        *(address(x) for x in (dq, dk, dv, qkv, cosine, sine, weights)),
        ctypes.c_float(eps),
        *(address(x) for x in (dqkv, dweights)),
        *(ctypes.c_int64(n) for n in (M, H, G, K, S)),
        *(ctypes.c_int(n) for n in (dq.dtype == torch.bfloat16, torch.get_num_threads())),
    )
    return dqkv, dweights.sum(0)


@backward.register_fake
def _(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor | None,
    cosine: Tensor | None,
    sine: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    B, T, H, K = dq.shape
    return dq.new_empty(B, T, H + 2 * dk.shape[2], K), dq.new_empty(2, K, dtype=torch.float32)


torch.library.register_autograd("hotplate::rotary_native", autograd.derivative(backward), setup_context=autograd.setup)
