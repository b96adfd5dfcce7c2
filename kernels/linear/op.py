"""A projection and plain products: contract, checks and the choice of implementation.

Letters: I inputs, O outputs; M, N, K sizes of a product.
"""

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import choose_impl
from hotplate.kernels.linear import reference

IMPLS = ("auto", "eager", "native", "reference")
# Fewer multiplications than this cost less than the call around them: below, torch's own products (README.md).
SMALLEST = 1 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """y = x W^T + b.

    x [..., I] and weight [O, I], bias [O] or None, of one dtype bf16|fp16|fp32|fp64 and any strides. Returns [..., O]
    in that dtype; gradients to all three, sums in fp32 or wider.
    impl: auto, eager (torch's own: the vendor's library), native (C on a CPU; fp32) or reference. auto is native for
    fp32 on CPUs where that was measured to be faster (AMD with AVX-512) and a C compiler is found, from 2^20
    multiplications on and outside autocast; else eager. A name never falls back.
    Flops: 2 I O forward, 4 I O backward per row. ValueError on any other shape, dtype, device or impl.
    """
    impl = _choose("linear", impl, x, x.numel() * weight.shape[0] if weight.ndim else 0)
    want_float("linear", "x", x)
    want(
        "linear",
        x.ndim > 0 and weight.ndim == 2 and x.shape[-1] == weight.shape[1],
        "x [..., I] and weight [O, I]",
        f"{list(x.shape)} and {list(weight.shape)}",
        "the last axes are multiplied and summed",
    )
    want(
        "linear",
        bias is None or tuple(bias.shape) == tuple(weight.shape[:1]),
        f"bias {list(weight.shape[:1])} or None",
        "" if bias is None else str(list(bias.shape)),
        "one value per output",
    )
    if impl == "reference":
        return reference.linear(x, weight, bias)
    if impl == "eager":
        return F.linear(x, weight, bias)
    _want_alike("linear", x, weight, bias)
    operator = importlib.import_module("hotplate.kernels.linear.native").operator
    y = operator(x.flatten(0, -2) if x.ndim != 1 else x[None], weight, None if bias is None else bias.contiguous())
    return y.unflatten(0, x.shape[:-1]) if x.ndim != 1 else y[0]


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False, impl: str = "auto") -> Tensor:
    """out = left right, or out += left right with `add`; returns out. For other rooms: no gradient.

    left [M, K], right [K, N] and out [M, N] of one dtype; out's last axis is contiguous, and shares no memory with the
    others. impl as in linear, without reference.
    """
    impl = _choose("multiply", impl, left, left.numel() * right.shape[-1], ("auto", "eager", "native"))
    want(
        "multiply",
        left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0],
        "left [M, K] and right [K, N]",
        f"{list(left.shape)} and {list(right.shape)}",
        "transpose one",
    )
    want(
        "multiply",
        out.shape == (left.shape[0], right.shape[1]) and (out.stride(1) == 1 or out.shape[1] == 1),
        f"out {[left.shape[0], right.shape[1]]} with contiguous rows",
        f"{list(out.shape)} with strides {out.stride()}",
        "allocate it so",
    )
    if impl == "eager":
        return out.addmm_(left, right) if add else torch.mm(left, right, out=out)
    _want_alike("multiply", left, right, out)
    return importlib.import_module("hotplate.kernels.linear.native").multiply(left, right, out, add=add)


def _choose(room: str, impl: str, x: Tensor, multiplications: int, known: tuple[str, ...] = IMPLS) -> str:
    """choose_impl, but for what was measured."""
    if impl == "auto":
        fp32 = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not fp32 or multiplications < SMALLEST or choose_impl("linear", "auto", x, known) != "native":
            return "eager"
        return "native" if _pays() else "eager"
    found = choose_impl("linear" if impl == "native" else room, impl, x, known)
    if found == "native":
        want(room, x.dtype == torch.float32, "float32 with impl='native'", f"{x.dtype}", "use impl='eager'")
    return found


@torch.compiler.assume_constant_result
def _pays() -> bool:
    return importlib.import_module("hotplate.kernels.linear.native").pays()


def _want_alike(room: str, x: Tensor, *others: Tensor | None) -> None:
    """C reads memory as what x is."""
    for other in others:
        if other is not None:
            alike, found = (other.dtype, other.device) == (x.dtype, x.device), f"{other.dtype} on {other.device}"
            want(room, alike, f"{x.dtype} on {x.device} throughout", found, "cast it")
