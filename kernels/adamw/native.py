"""AdamW in C: one call for all tensors. On a CPU reading a scalar waits for nothing."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.checks import want
from hotplate.kernels.launch import address


def _table(tensors: Sequence[Tensor] | None, N: int) -> ctypes.Array:
    return (ctypes.c_void_p * N)(*([None] * N if tensors is None else [x.data_ptr() for x in tensors]))


def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    factors: Tensor,
    betas: tuple[float, float],
    eps: float,
    scale: Tensor,
    skipped: Tensor,
) -> None:
    """See op.py; factors [N, 3] are what the step makes of lr, betas and weight decay."""
    library, N = native.load("adamw"), len(weights)
    assert library is not None, "op.py asks for native code only where it was built"
    for copy in copies or ():
        want("adamw", copy.dtype == torch.bfloat16, "bfloat16 copies", str(copy.dtype), "use impl='eager'")
    if skipped.item() != 0:
        return
    library.adamw(
        *(_table(tensors, N) for tensors in (weights, gradients, first, second, copies)),
        (ctypes.c_int64 * N)(*(x.numel() for x in weights)),
        address(factors),
        ctypes.c_int64(N),
        *(ctypes.c_float(x) for x in (scale.item(), 1 - betas[0], betas[1], 1 - betas[1], eps)),
        ctypes.c_int(torch.get_num_threads()),
    )
