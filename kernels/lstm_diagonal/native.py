"""The LSTM with diagonal recurrent weights through native.c. Tensors come contiguous, weights and states in fp32."""

import ctypes

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.launch import address


def _library() -> ctypes.CDLL:
    library = native.load("lstm_diagonal")
    assert library is not None, "op.py asks for native code only where it was built"
    return library


def _sizes(gates: Tensor) -> list[ctypes.c_int64 | ctypes.c_int]:
    B, T, _, D = gates.shape
    half = gates.dtype == torch.bfloat16
    return [ctypes.c_int64(B), ctypes.c_int64(T), ctypes.c_int64(D), ctypes.c_int(half)]


def saved_shape(B: int, T: int, D: int) -> tuple[int, ...]:
    """Of what the backward needs besides its inputs: (h, c) before every K-th step."""
    return B, -(-T // _library().checkpoint_steps()), 2, D


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    saving: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [B, T, D], h_last and c_last [B, D], and the checkpoints of `saved_shape` (empty unless saving)."""
    B, T, _, D = gates.shape
    h, saved = gates.new_empty(B, T, D), gates.new_empty(saved_shape(B, T, D) if saving else 0, dtype=torch.float32)
    h_last, c_last = (gates.new_empty(B, D, dtype=torch.float32) for _ in range(2))
    _library().forward(
        *(address(x) for x in (gates, recurrent, h0, c0, resets, h, h_last, c_last, saved if saving else None)),
        *_sizes(gates),
        ctypes.c_float(forget_offset),
        ctypes.c_int(torch.get_num_threads()),
    )
    return h, h_last, c_last, saved


def backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    gates: Tensor,
    recurrent: Tensor,
    saved: Tensor,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dgates like gates, drecurrent [4, D], dh0 and dc0 [B, D]."""
    B, _, _, D = gates.shape
    dgates, parts = torch.empty_like(gates), gates.new_empty(B, 4, D, dtype=torch.float32)
    dh0, dc0 = (gates.new_empty(B, D, dtype=torch.float32) for _ in range(2))
    arrays = (gates, recurrent, saved, resets, dh, dh_last, dc_last, dgates, parts, dh0, dc0)
    _library().backward(
        *(address(x) for x in arrays),
        *_sizes(gates),
        ctypes.c_float(forget_offset),
        ctypes.c_int(torch.get_num_threads()),
    )
    return dgates, parts.sum(0), dh0, dc0
