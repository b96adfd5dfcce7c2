"""AdamW in C: one call for all tensors. On a CPU reading a scalar waits for nothing."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.checks import want


def _table(tensors: Sequence[Tensor] | None, N: int) -> ctypes.Array:
    return (ctypes.c_void_p * N)(*([None] * N if tensors is None else [x.data_ptr() for x in tensors]))


def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scale: Tensor,
    skipped: Tensor,
) -> None:
    """See op.py."""
    library, N = native.load("adamw"), len(weights)
    assert library is not None, "op.py asks for native code only where it was built"
    for copy in copies or ():
        want("adamw", copy.dtype == torch.bfloat16, "bfloat16 copies", str(copy.dtype), "use impl='eager'")
    dtype, half = gradients[0].dtype, gradients[0].dtype == torch.bfloat16
    want("adamw", dtype != torch.float16, "float32 or bfloat16 gradients", str(dtype), "use impl='eager'")
    if skipped.item() != 0:
        return
    torch._foreach_add_(list(steps), 1.0)
    rate = float(lr)
    factors = [x for t in torch.stack(list(steps)).tolist() for x in _factors(t, rate, betas, weight_decay)]
    library.adamw(
        *(_table(tensors, N) for tensors in (weights, gradients, first, second, copies)),
        (ctypes.c_int64 * N)(*(x.numel() for x in weights)),
        (ctypes.c_float * (3 * N))(*factors),
        ctypes.c_int64(N),
        ctypes.c_int(half),
        *(ctypes.c_float(x) for x in (scale.item(), 1 - betas[0], betas[1], 1 - betas[1], eps)),
        ctypes.c_int(torch.get_num_threads()),
    )


def _factors(t: float, lr: float, betas: tuple[float, float], weight_decay: float) -> tuple[float, float, float]:
    """Of the weight, of the first moment and of the root of the second, at step t."""
    return 1 - lr * weight_decay, lr / (1 - betas[0] ** t), (1 - betas[1] ** t) ** -0.5
