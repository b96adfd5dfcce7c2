"""Products in C, and the projection made of them as operators that are opaque to torch.compile. fp32 on a CPU.

Letters: M rows, I inputs, O outputs.
"""

import ctypes
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hotplate.kernels import native

LINE = 64  # bytes; where a thread's panels start


class _Product(ctypes.Structure):
    """`product` of native.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("M", "N", "K")),
        *(("A", ctypes.c_void_p), ("A_row", ctypes.c_int64), ("A_column", ctypes.c_int64)),
        *(("B", ctypes.c_void_p), ("B_row", ctypes.c_int64), ("B_column", ctypes.c_int64)),
        *(("C", ctypes.c_void_p), ("C_row", ctypes.c_int64), ("bias", ctypes.c_void_p), ("add", ctypes.c_int)),
    ]


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    """(library, bytes of a thread's panels)."""
    library = native.load("linear")
    assert library is not None, "op.py asks for native code only where it was built"
    library.linear_panel_bytes.restype = ctypes.c_int64
    library.linear_product.restype = None
    library.linear_product.argtypes = [ctypes.POINTER(_Product), ctypes.c_void_p, ctypes.c_int]
    return library, library.linear_panel_bytes()


@cache
def pays() -> bool:
    """Whether this processor is of a kind on which C was measured to be faster than torch's library."""
    return native.load("linear") is not None and bool(_library()[0].linear_pays())


class _Panels(threading.local):
    """Memory that every product of a Python thread uses again: fresh pages would cost more than small products do."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def start(self, size: int) -> int:
        """Where `size` bytes start, at a multiple of LINE."""
        if self.memory.numel() < size + LINE:
            self.memory = torch.empty(size + LINE, dtype=torch.uint8)
        return -(-self.memory.data_ptr() // LINE) * LINE


_panels = _Panels()


def multiply(left: Tensor, right: Tensor, out: Tensor, bias: Tensor | None = None, add: bool = False) -> Tensor:
    """out = left right, + bias, or + out with `add`; out [M, N] with its last axis contiguous, no operand in it."""
    library, size = _library()
    threads = torch.get_num_threads()
    work = _Product(
        out.shape[0], out.shape[1], left.shape[1],
        left.data_ptr(), left.stride(0), left.stride(1),
        right.data_ptr(), right.stride(0), right.stride(1),
        out.data_ptr(), out.stride(0), None if bias is None else bias.data_ptr(), add,
    )  # fmt: skip
    library.linear_product(ctypes.byref(work), _panels.start(threads * size), threads)
    return out


@torch.library.custom_op("hotplate::linear_native", mutates_args=())
def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [M, O] from x [M, I], weight [O, I] and bias [O], which is contiguous."""
    return multiply(x, weight.T, x.new_empty(len(x), len(weight)), bias)


@operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


@torch.library.custom_op("hotplate::linear_native_backward", mutates_args=())
def backward(dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias where `needs` asks for them, else empty."""
    dx, dweight, dbias = _gradients(dy, x, weight, needs)
    if needs[0]:
        multiply(dy, weight, dx)
    if needs[1]:
        multiply(dy.T, x, dweight)
    if needs[2]:
        torch.sum(dy, 0, out=dbias)
    return dx, dweight, dbias


@backward.register_fake
def _gradients(dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    dx, dweight, dbias = (x.new_empty(s if need else (0,)) for s, need in zip(shapes, needs, strict=True))
    return dx, dweight, dbias


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    made = backward(dy, *ctx.saved_tensors, needs)
    return tuple(gradient if need else None for gradient, need in zip(made, needs, strict=True))


# What torch's FlopCounterMode counts, from shapes.
@register_flop_formula(torch.ops.hotplate.linear_native)
def _(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * weight[0]


@register_flop_formula(torch.ops.hotplate.linear_native_backward)
def _(dy: list[int], x: list[int], weight: list[int], needs: list[bool], **_: Any) -> int:
    return 2 * x[0] * x[1] * weight[0] * sum(needs[:2])


torch.library.register_autograd("hotplate::linear_native", _differentiate, setup_context=_setup)
