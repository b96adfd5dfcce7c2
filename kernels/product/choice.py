"""Which form a product runs: C where it was measured to be faster than torch's library (kernels/linear/README.md)."""

import importlib

import torch
from torch import Tensor

from hotplate.kernels.checks import want
from hotplate.kernels.launch import choose_impl

PRODUCT_IMPLS = ("auto", "eager", "native")
# Fewer multiplications than this cost less than the call around them: below, torch's own products.
SMALLEST = 1 << 20


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False, impl: str = "auto") -> Tensor:
    """out = left right, or out += left right with `add`; returns out. For other rooms: no gradient.

    left [M, K], right [K, N] and out [M, N] of one dtype; out's last axis is contiguous, and shares no memory with the
    others. impl as in linear, without reference.
    """
    impl = choose("multiply", impl, left, left.numel() * right.shape[-1], PRODUCT_IMPLS)
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
    want_alike("multiply", left, right, out)
    return importlib.import_module("hotplate.kernels.product.native").multiply(left, right, out, add=add)


def choose(room: str, impl: str, x: Tensor, multiplications: int, known: tuple[str, ...]) -> str:
    """choose_impl, but for what was measured; `multiplications` of the whole product."""
    if impl == "auto":
        fp32 = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not fp32 or multiplications < SMALLEST or choose_impl("product", "auto", x, known) != "native":
            return "eager"
        return "native" if _pays() else "eager"
    if impl == "native":
        fits = x.device.type == "cpu" and x.dtype == torch.float32
        want(room, fits, "a CPU tensor of float32 with impl='native'", f"{x.dtype} on {x.device}", "use impl='eager'")
        choose_impl("product", "native", x, known)
        return "native"
    return choose_impl(room, impl, x, known)


@torch.compiler.assume_constant_result
def _pays() -> bool:
    return importlib.import_module("hotplate.kernels.product.native").pays()


def want_alike(room: str, x: Tensor, *others: Tensor | None) -> None:
    """C reads memory as what x is."""
    for other in others:
        if other is not None:
            alike, found = (other.dtype, other.device) == (x.dtype, x.device), f"{other.dtype} on {other.device}"
            want(room, alike, f"{x.dtype} on {x.device} throughout", found, "cast it")
