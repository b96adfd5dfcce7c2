"""The products of native.c: pointers, strides and memory for panels. fp32 and bf16 on a CPU, with sums in fp32."""

import ctypes
import threading
from functools import cache

import torch
from torch import Tensor

from hotplate.kernels import native

LINE = 64  # bytes; where a thread's panels start


class _Product(ctypes.Structure):
    """`product` of native.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("M", "N", "K")),
        *(("A", ctypes.c_void_p), ("A_row", ctypes.c_int64), ("A_column", ctypes.c_int64)),
        *(("B", ctypes.c_void_p), ("B_row", ctypes.c_int64), ("B_column", ctypes.c_int64)),
        *(("C", ctypes.c_void_p), ("C_row", ctypes.c_int64), ("bias", ctypes.c_void_p)),
        *((name, ctypes.c_int) for name in ("add", "half", "rounded")),
    ]


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    """(library, bytes of a thread's panels)."""
    library = native.load("product")
    assert library is not None, native.why_not("product")
    for size in (library.product_panel_bytes, library.product_rounded_depth):
        size.restype = ctypes.c_int64
    library.product_of.restype = None
    library.product_of.argtypes = [ctypes.POINTER(_Product), ctypes.c_void_p, ctypes.c_int]
    return library, library.product_panel_bytes()


@cache
def pays() -> bool:
    """Whether this processor is of a kind on which C was measured to be faster than torch's library."""
    return native.load("product") is not None and bool(_library()[0].product_pays())


@cache
def takes_halves() -> bool:
    """Whether this processor multiplies bf16 operands; where it does they take half the time of fp32's."""
    return pays() and bool(_library()[0].product_of_halves())


class Panels(threading.local):
    """Memory that every call of a Python thread uses again: fresh pages would cost more than small products do."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def start(self, size: int) -> int:
        """Where `size` bytes start, at a multiple of LINE."""
        if self.memory.numel() < size + LINE:
            self.memory = torch.empty(size + LINE, dtype=torch.uint8)
        return -(-self.memory.data_ptr() // LINE) * LINE


panels = Panels()


def multiply(left: Tensor, right: Tensor, out: Tensor, bias: Tensor | None = None, add: bool = False) -> Tensor:
    """out = left right, + bias, or + out with `add`; out [M, N] with its last axis contiguous, no operand in it.

    All fp32; or left and right bf16, and out fp32 or, without `add`, bf16. bias: contiguous, of left's dtype.
    """
    library, size = _library()
    K, deepest = left.shape[1], library.product_rounded_depth()
    rounded = out.dtype == torch.bfloat16
    if K == 0:
        return out if add else out.copy_(out.new_zeros(()) if bias is None else bias)
    if rounded and deepest < K:
        return out.copy_(multiply(left, right, torch.empty(out.shape), bias))
    threads, bias = torch.get_num_threads(), None if bias is None else bias.float()
    work = _Product(
        out.shape[0], out.shape[1], K,
        left.data_ptr(), left.stride(0), left.stride(1),
        right.data_ptr(), right.stride(0), right.stride(1),
        out.data_ptr(), out.stride(0), None if bias is None else bias.data_ptr(), add,
        left.dtype == torch.bfloat16, rounded,
    )  # fmt: skip
    library.product_of(ctypes.byref(work), panels.start(threads * size), threads)
    return out
