"""Loss and gradient of a chunk's fp32 logits in C, row by row in cache, on a CPU."""

import ctypes

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.cross_entropy.reference import Loss
from hotplate.kernels.launch import address

BLOCK = 64  # columns, W of native.c


class _Loss(ctypes.Structure):
    """`Loss` of native.c."""

    _fields_ = [(name, ctypes.c_float) for name in ("scale", "cap", "smoothing", "z")]


def rows(
    logits: Tensor,
    targets: Tensor,
    factors: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    known: bool,
    loss: Loss,
    dtype: torch.dtype,
) -> Tensor:
    """Fills losses and lse [C], unless lse is known; where there are factors [C], returns the gradient [C, V].

    It is of `dtype` (fp32 or bf16), in the memory of the logits.
    """
    half = dtype == torch.bfloat16 and factors is not None
    library, threads = native.load("cross_entropy"), torch.get_num_threads()
    assert library is not None, "op.py asks for native code only where it was built"
    C, V = logits.shape
    slopes = logits.new_empty(threads * -(-V // BLOCK) * BLOCK) if loss.cap else None
    library.loss_rows(
        address(logits),
        *(ctypes.c_int64(n) for n in (C, V, logits.stride(0))),
        address(targets.contiguous()),
        address(None if factors is None else factors.contiguous()),
        address(losses),
        address(lse),
        ctypes.c_int(known),
        ctypes.byref(_Loss(loss.scale, loss.cap, loss.smoothing, loss.z)),
        address(slopes),
        ctypes.c_int(half),
        ctypes.c_int(threads),
    )
    return logits.view(dtype)[:, :V] if half else logits
