"""The activation in C, as an operator that is opaque to torch.compile. Tensors come contiguous."""

import ctypes

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.launch import address
from hotplate.kernels.mlp import autograd

NUMBERS = {"swiglu": 0, "gelu": 1, "relu2": 2}  # as in native.c


def _library() -> ctypes.CDLL:
    library = native.load("mlp")
    assert library is not None, "op.py asks for native code only where it was built"
    return library


def _features(x: Tensor, kind: str) -> int:
    return x.shape[-1] // 2 if kind == "swiglu" else x.shape[-1]


def _facts(x: Tensor, kind: str) -> list[ctypes.c_int64 | ctypes.c_int]:
    sizes = [ctypes.c_int64(n) for n in (x.numel() // max(1, x.shape[-1]), _features(x, kind))]
    return [*sizes, *(ctypes.c_int(n) for n in (NUMBERS[kind], x.dtype == torch.bfloat16, torch.get_num_threads()))]


@torch.library.custom_op("hotplate::mlp_native", mutates_args=())
def operator(x: Tensor, kind: str) -> Tensor:
    """y [..., F]."""
    y = x.new_empty(*x.shape[:-1], _features(x, kind))
    _library().forward(address(x), address(y), *_facts(x, kind))
    return y


@operator.register_fake
def _(x: Tensor, kind: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _features(x, kind))


@torch.library.custom_op("hotplate::mlp_native_backward", mutates_args=())
def backward(dy: Tensor, x: Tensor, kind: str) -> Tensor:
    """dx like x."""
    dx = torch.empty_like(x)
    _library().backward(address(dy), address(x), address(dx), *_facts(x, kind))
    return dx


@backward.register_fake
def _(dy: Tensor, x: Tensor, kind: str) -> Tensor:
    return torch.empty_like(x)


torch.library.register_autograd("hotplate::mlp_native", autograd.derivative(backward), setup_context=autograd.setup)
