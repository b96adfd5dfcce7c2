"""The norm in C (kernels/native/norm.h), as an operator that is opaque to torch.compile. Tensors come contiguous.

Letters: M rows, D features, S stripes of rows.
"""

import ctypes

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.launch import address
from hotplate.kernels.norm import autograd

STRIPES = 16  # partial sums of the weight's gradient: enough for threads, whatever their number


def _library(centred: bool) -> ctypes.CDLL:
    library = native.load("layernorm" if centred else "rmsnorm")
    assert library is not None, "op.py asks for native code only where it was built"
    return library


def _statistics_shape(M: int, centred: bool) -> tuple[int, int]:
    """rstd, then mean."""
    return 2 if centred else 1, M


@torch.library.custom_op("hotplate::norm_native", mutates_args=())
def operator(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y [M, D], the sum [M, D] (empty without a residual) and the statistics fp32 [1 or 2, M]."""
    (M, D), threads, centred = x.shape, torch.get_num_threads(), bias is not None
    y, total = torch.empty_like(x), x.new_empty(x.shape if residual is not None else (0,))
    statistics = x.new_empty(_statistics_shape(M, centred), dtype=torch.float32)
    weight, bias = weight.float(), None if bias is None else bias.float()
    work = x.new_empty(threads, D, dtype=torch.float32)
    _library(centred).norm_forward(
        *(address(t) for t in (x, residual, weight, bias, None if residual is None else total, y)),
        address(statistics[-1]),
        address(statistics[0]),
        address(work),
        *(ctypes.c_int64(n) for n in (M, D)),
        ctypes.c_float(eps),
        *(ctypes.c_int(n) for n in (x.dtype == torch.bfloat16, threads)),
    )
    return y, total, statistics


@operator.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(x.shape if residual is not None else (0,))
    shape = _statistics_shape(x.shape[0], bias is not None)
    return torch.empty_like(x), total, x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("hotplate::norm_native_backward", mutates_args=())
def backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx [M, D]; dweight and dbias [D] fp32, dbias empty without a bias."""
    (M, D), threads, S = total.shape, torch.get_num_threads(), max(1, min(STRIPES, total.shape[0]))
    dx = torch.empty_like(total)
    dweight, dbias = dy.new_zeros(2, S, D, dtype=torch.float32)
    weight, work = weight.float(), dy.new_empty(threads, 2 * D, dtype=torch.float32)
    _library(bias is not None).norm_backward(
        *(address(t) for t in (dy, dtotal, total, weight, statistics[-1], statistics[0], dx, dweight, dbias, work)),
        *(ctypes.c_int64(n) for n in (M, D, S)),
        *(ctypes.c_int(n) for n in (dy.dtype == torch.bfloat16, threads)),
    )
    return dx, dweight.sum(0), dweight.new_empty(0) if bias is None else dbias.sum(0)


@backward.register_fake
def _(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    D = total.shape[1]
    dweight, dbias = (dy.new_empty(n, dtype=torch.float32) for n in (D, 0 if bias is None else D))
    return torch.empty_like(total), dweight, dbias


torch.library.register_autograd("hotplate::norm_native", autograd.derivative(backward), setup_context=autograd.setup)
