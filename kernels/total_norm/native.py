"""The norm in C: one call for all tensors, contiguous fp32 or bf16 on a CPU."""

import ctypes
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from hotplate.kernels import native


@cache
def _library() -> ctypes.CDLL:
    library = native.load("total_norm")
    assert library is not None, "op.py asks for native code only where it was built"
    library.square_sum_blocks.restype = ctypes.c_int64
    library.square_sum.restype = ctypes.c_double
    return library


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """See op.py."""
    library, N = _library(), ctypes.c_int64(len(tensors))
    held = [x.contiguous() for x in tensors]
    addresses = (ctypes.c_void_p * len(held))(*[x.data_ptr() for x in held])
    sizes = (ctypes.c_int64 * len(held))(*[x.numel() for x in held])
    partial = (ctypes.c_double * library.square_sum_blocks(sizes, N))()
    half, threads = ctypes.c_int(held[0].dtype == torch.bfloat16), ctypes.c_int(torch.get_num_threads())
    square = library.square_sum(addresses, sizes, N, half, partial, threads)
    return torch.tensor(math.sqrt(square), dtype=torch.float64)
