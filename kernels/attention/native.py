"""Attention in C, as operators that are opaque to torch.compile. fp32 and bf16 on a CPU.

Letters: P positions of B rows of T queries, S keys of a row, H query heads, Hkv key heads, K head width, N documents.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hotplate.kernels import native
from hotplate.kernels.attention.problem import Call, Problem, Result
from hotplate.kernels.attention.registered import arriving, gradients, rows
from hotplate.kernels.direct import direct
from hotplate.kernels.product.native import panels

LONGS, POINTERS, FLOATS = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
PIECE_NUMBERS = 4  # int64 of a `piece` of native.c


class _Attention(ctypes.Structure):
    """`attention` of native.c."""

    _fields_ = [
        *((name, LONGS) for name in ("positions", "others", "H", "Hkv", "K")),
        *((name, POINTERS) for name in ("q", "k", "v", "dout")),
        *((f"{name}_{axis}", LONGS) for name in ("q", "k", "v", "dout") for axis in ("row", "head")),
        *((name, POINTERS) for name in ("out", "lse", "dlse", "dq", "dk", "dv")),
        *((name, FLOATS) for name in ("scale", "softcap")),
        *(("window", LONGS), ("pieces", POINTERS), ("count", LONGS), ("longest", LONGS)),
        *(("memory", POINTERS), ("threads", ctypes.c_int), ("half", ctypes.c_int)),
    ]


@cache
def _library() -> ctypes.CDLL:
    library = native.load("attention")
    assert library is not None, "choice.py asks for native code only where it was built"
    library.attention_plan.restype = ctypes.c_int64
    library.attention_plan.argtypes = [ctypes.POINTER(_Attention), ctypes.c_void_p, *[ctypes.c_int64] * 4]
    for run in (library.attention_forward, library.attention_backward):
        run.restype, run.argtypes = None, [ctypes.POINTER(_Attention)]
    return library


@cache
def pays() -> bool:
    """Whether this processor is of a kind on which C was measured to be faster than torch's attention."""
    return native.load("attention") is not None and bool(_library().attention_pays())


def reasons(problem: Problem) -> list[str]:
    """Why C cannot serve the problem."""
    why = []
    if problem.device.type != "cpu":
        why.append(f"needs a CPU tensor, got one on {problem.device}")
    if problem.dtype not in (torch.float32, torch.bfloat16):
        why.append(f"needs float32 or bfloat16, got {str(problem.dtype).removeprefix('torch.')}")
    return why or [reason.splitlines()[0] for reason in [native.why_not("attention")] if reason]


def _run(
    function: str,
    inputs: dict[str, Tensor],
    others: dict[str, Tensor | None],
    cu_seqlens: Tensor | None,
    sizes: tuple[int, int],
    options: tuple[float, int | None, float | None],
) -> None:
    """inputs are [., heads, K] with adjoining features; others are contiguous. sizes: T, S; options: scale, window,
    softcap."""
    (P, H, K), (T, S), (scale, window, softcap) = inputs["q"].shape, sizes, options
    keys, Hkv = inputs["k"].shape[:2]
    documents = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    pieces = torch.empty(documents + P // T, PIECE_NUMBERS, dtype=torch.int64)
    work = _Attention(
        **dict(positions=P, others=keys, H=H, Hkv=Hkv, K=K, pieces=pieces.data_ptr()),
        half=inputs["q"].dtype == torch.bfloat16,
        **dict(scale=scale, window=window or 0, softcap=softcap or 0.0, threads=torch.get_num_threads()),
        **{name: x.data_ptr() for name, x in (inputs | others).items() if x is not None},
        **{f"{name}_row": x.stride(0) for name, x in inputs.items()},
        **{f"{name}_head": x.stride(1) for name, x in inputs.items()},
    )
    edges = None if cu_seqlens is None else cu_seqlens.data_ptr()
    work.memory = panels.start(_library().attention_plan(work, edges, documents, P // T, T, S))
    getattr(_library(), function)(work)


@torch.library.custom_op("hotplate::attention_native", mutates_args=())
def operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    T: int,
    S: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """out [P, H, K] and lse [H, P] of q [P, H, K], k and v [., Hkv, K]."""
    P, H, K = q.shape
    out, lse = q.new_empty(P, H, K), q.new_empty(H, P, dtype=torch.float32)
    given: dict[str, Tensor | None] = {"out": out, "lse": lse}
    _run("attention_forward", {"q": q, "k": k, "v": v}, given, cu_seqlens, (T, S), (scale, window, softcap))
    return out, lse


@operator.register_fake
def _(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    P, H, K = q.shape
    return q.new_empty(P, H, K), q.new_empty(H, P, dtype=torch.float32)


@torch.library.custom_op("hotplate::attention_native_backward", mutates_args=())
def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor | None,
    T: int,
    S: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, contiguous."""
    dq, dk, dv = gradients(dout, dlse, q, k, v)
    inputs = {"q": q, "k": k, "v": v, "dout": dout}
    others = {"lse": lse, "dlse": dlse, "dq": dq, "dk": dk, "dv": dv}
    _run("attention_backward", inputs, others, cu_seqlens, (T, S), (scale, window, softcap))
    return dq, dk, dv


torch.library.register_fake("hotplate::attention_native_backward", gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, output[1], cu_seqlens)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, lse, cu_seqlens = ctx.saved_tensors
    dout, dlse = arriving(dout, dlse, q)
    found = direct(backward)(dout, dlse, q, k, v, lse, cu_seqlens, *ctx.options)
    return *found, None, None, None, None, None, None


torch.library.register_autograd("hotplate::attention_native", _differentiate, setup_context=_setup_context)


# What torch's FlopCounterMode counts, from shapes: of rows that are documents.
def _products(q: list[int], T: int, S: int) -> int:
    """Floating-point operations of one product over the scores that are seen."""
    P, H, K = q
    return 2 * (P // T) * H * K * (T * S - T * (T - 1) // 2)


@register_flop_formula(torch.ops.hotplate.attention_native)
def _(q: list[int], k: list[int], v: list[int], cu_seqlens: Any, T: int, S: int, *_: Any, **__: Any) -> int:
    return 2 * _products(q, T, S)


@register_flop_formula(torch.ops.hotplate.attention_native_backward)
def _(
    dout: list[int], dlse: Any, q: list[int], k: Any, v: Any, lse: Any, cu_seqlens: Any, T: int, S: int, *_: Any,
    **__: Any,
) -> int:  # fmt: skip
    return 5 * _products(q, T, S)


def attention(call: Call) -> Result:
    """See op.py."""
    B, T, S = *call.q.shape[:2], call.k.shape[1]
    q, k, v = rows(call.q), rows(call.k), rows(call.v)
    cu_seqlens = None if call.cu_seqlens is None else call.cu_seqlens.contiguous()
    out, lse = direct(operator)(q, k, v, cu_seqlens, T, S, call.scale, call.window, call.softcap)
    return out.view(call.q.shape), lse.view(-1, B, T).transpose(0, 1) if call.lse else None
