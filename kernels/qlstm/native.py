"""Quasi-LSTM through native.c: allocates what it fills and hands over addresses. Tensors come contiguous."""

import ctypes

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.launch import address


def _library() -> ctypes.CDLL:
    library = native.load("qlstm")
    assert library is not None, "op.py asks for native code only where it was built"
    return library


def _sizes(gates: Tensor) -> list[ctypes.c_int64 | ctypes.c_int]:
    B, T, N, D = gates.shape
    half = gates.dtype == torch.bfloat16
    return [ctypes.c_int64(B), ctypes.c_int64(T), ctypes.c_int64(D), ctypes.c_int(N), ctypes.c_int(half)]


def saved_shape(gates: Tensor) -> tuple[int, ...]:
    """Of what the backward needs besides its inputs: c before every K-th step."""
    B, T, _, D = gates.shape
    return B, -(-T // _library().checkpoint_steps()), D


def forward(
    gates: Tensor, c0: Tensor | None, resets: Tensor | None, forget_offset: float, saving: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, T, D], c_last [B, D] and the checkpoints of `saved_shape` (empty unless saving)."""
    B, T, _, D = gates.shape
    h, c_last = gates.new_empty(B, T, D), gates.new_empty(B, D, dtype=torch.float32)
    checkpoints = gates.new_empty(saved_shape(gates) if saving else 0, dtype=torch.float32)
    _library().forward(
        *(address(x) for x in (gates, c0, resets, h, c_last, checkpoints if saving else None)),
        *_sizes(gates),
        ctypes.c_float(forget_offset),
        ctypes.c_int(torch.get_num_threads()),
    )
    return h, c_last, checkpoints


def backward(
    dh: Tensor, dc_last: Tensor | None, gates: Tensor, saved: Tensor, resets: Tensor | None, forget_offset: float
) -> tuple[Tensor, Tensor]:
    """dgates like gates, dc0 [B, D]."""
    B, _, _, D = gates.shape
    dgates, dc0 = torch.empty_like(gates), gates.new_empty(B, D, dtype=torch.float32)
    _library().backward(
        *(address(x) for x in (gates, saved, resets, dh, dc_last, dgates, dc0)),
        *_sizes(gates),
        ctypes.c_float(forget_offset),
        ctypes.c_int(torch.get_num_threads()),
    )
    return dgates, dc0
