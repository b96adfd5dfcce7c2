"""The recurrence in C (kernels/native/lstm.h, recurrent_gradient.h): memory for what it works on, and pointers.

Letters: B rows, T steps, H heads, K head width, R recurrent matrices (H, or 1 shared).
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.kernels.launch import address
from hotplate.kernels.recurrence.autograd import Form, Shapes

_FORWARD_STATES, _BACKWARD_STATES = 3, 6  # values of a row and column that a program works on


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("b", "t", "gate", "head")]


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("B", "T", "H", "R", "K", "blocks")]


class _Terms(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("B", "T", "H", "K")]


@cache
def _library(room: str) -> tuple[ctypes.CDLL, int, int]:
    """(library, columns of a panel, most rows of a block)."""
    library = native.load(room)
    assert library is not None, native.why_not(room)
    library.lstm_forward.restype = library.lstm_backward.restype = None
    library.lstm_forward.argtypes = [*[ctypes.c_void_p] * 14, ctypes.c_float, ctypes.c_int, ctypes.c_int]
    library.lstm_backward.argtypes = [*[ctypes.c_void_p] * 15, ctypes.c_int]
    library.recurrent_gradient.restype = None
    library.recurrent_gradient.argtypes = [*[ctypes.c_void_p] * 8, ctypes.c_int]
    library.gradient_shared_floats.argtypes = [ctypes.c_int64] * 2
    library.gradient_shared_floats.restype = library.gradient_thread_floats.restype = ctypes.c_int64
    return library, library.lstm_lanes(), library.lstm_max_rows()


def _sizes(B: int, T: int, H: int, R: int, K: int, most_rows: int, threads: int) -> _Sizes:
    """As few blocks of rows as fit the tiles and occupy the threads: every block reads all of its matrix per step."""
    for_rows, for_threads = -(-B // most_rows), -(-threads // H)
    return _Sizes(B, T, H, R, K, max(for_rows, min(for_threads, B)))


def _matrix(recurrent: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to the dtype of gates, held in fp32, contiguous."""
    return recurrent.to(dtype).float().contiguous()


def _dense_rows(tensor: Tensor) -> Tensor:
    """fp32, its last axis contiguous."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _start(state: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if state is None else state.to(dtype).float().contiguous()


def _recurrent_gradient(
    library: ctypes.CDLL, h: Tensor, h0: Tensor | None, resets: Tensor | None, dpre: Tensor, like: Tensor
) -> Tensor:
    """dR [4, R, K, K] in the dtype of `like`. h [B, T, H, K], h0 and dpre are fp32; all are contiguous."""
    B, T, H, K = h.shape
    threads = torch.get_num_threads()
    product = h.new_empty(4, H, K, K)
    shared = h.new_empty(library.gradient_shared_floats(H, K))
    work = h.new_empty(threads, library.gradient_thread_floats())
    library.recurrent_gradient(
        *map(address, (h, h0, resets, dpre, product, shared, work)), ctypes.byref(_Terms(B, T, H, K)), threads
    )
    shared_by_heads = H > 1 and like.shape[1] == 1
    return (product.sum(1, keepdim=True) if shared_by_heads else product).to(like.dtype)


def kept(B: int, T: int, H: int, K: int) -> Shapes:
    """Activated gates and cells."""
    return (T, H, B, 4, K), (T, H, B, K)


def form(room: str) -> Form:
    """The form that runs the C code of kernels/<room>; 24 bytes per element are kept for the backward."""

    def forward(
        gates: Tensor,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        library, lanes, most_rows = _library(room)
        B, T, _, H, K = gates.shape
        R, threads = recurrent.shape[1], torch.get_num_threads()
        x = _dense_rows(gates)
        matrix, width = _matrix(recurrent, gates.dtype), -(-K // lanes) * lanes
        packed = x.new_empty(4 * R * K * width)
        h = x.new_empty(B, T, H, K)
        h_last, c_last = (x.new_empty(B, H, K) for _ in range(2))
        act, cells = (x.new_empty(shape if keep else 0) for shape in kept(B, T, H, K))
        work = x.new_empty(threads, _FORWARD_STATES * most_rows * width)
        h0, c0 = _start(h0, gates.dtype), _start(c0, torch.float32)
        resets = None if resets is None else resets.contiguous()
        library.lstm_forward(
            address(x),
            ctypes.byref(_Strides(x.stride(0), x.stride(1), x.stride(2), x.stride(3))),
            *map(address, (matrix, packed, h0, c0, resets, h, h_last, c_last)),
            *map(address, (act, cells) if keep else (None, None)),
            address(work),
            ctypes.byref(_sizes(B, T, H, R, K, most_rows, threads)),
            forget_offset,
            gates.dtype == torch.bfloat16,
            threads,
        )
        return h.to(gates.dtype), h_last, c_last, act, cells

    def backward(
        dh: Tensor,
        dh_last: Tensor | None,
        dc_last: Tensor | None,
        h: Tensor,
        act: Tensor,
        cells: Tensor,
        gates: None,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        library, lanes, most_rows = _library(room)
        B, T, H, K = h.shape
        R, threads = recurrent.shape[1], torch.get_num_threads()
        arriving = _dense_rows(dh)
        matrix, width = _matrix(recurrent, h.dtype), -(-K // lanes) * lanes
        packed = arriving.new_empty(4 * R * K * width)
        dpre = arriving.new_empty(B, T, 4, H, K)
        dh0, dc0 = (arriving.new_empty(B, H, K) for _ in range(2))
        work = arriving.new_empty(threads, _BACKWARD_STATES * most_rows * width)
        dh_last, dc_last, c_start = (_start(x, torch.float32) for x in (dh_last, dc_last, c0))
        reset_rows = None if resets is None else resets.contiguous()
        library.lstm_backward(
            address(arriving),
            ctypes.byref(_Strides(arriving.stride(0), arriving.stride(1), 0, arriving.stride(2))),
            *map(address, (dh_last, dc_last, act, cells, c_start, reset_rows, matrix, packed, dpre, dh0, dc0, work)),
            ctypes.byref(_sizes(B, T, H, R, K, most_rows, threads)),
            threads,
        )
        h_rows, h_start = h.float().contiguous(), _start(h0, h.dtype)
        drecurrent = _recurrent_gradient(library, h_rows, h_start, reset_rows, dpre, recurrent)
        return dpre.to(h.dtype), drecurrent, dh0, dc0

    return Form(forward, backward, kept)
