"""Which form a product runs: C where it was measured to be faster than torch's library (kernels/linear/README.md)."""

import importlib

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype, want
from hotplate.kernels.launch import choose_impl, constant

PRODUCT_IMPLS = ("auto", "eager", "native")
# Fewer multiplications than this cost less than the call around them: below, torch's own products.
SMALLEST = 1 << 20


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False, impl: str = "auto") -> Tensor:
    """out = left right, or out += left right with `add`; returns out. For other rooms: no gradient.

    left [M, K] and right [K, N] of one dtype, out [M, N] of that or, with sums of 16-bit operands that are not rounded,
    of fp32; out's last axis is contiguous, and shares no memory with the others. impl as in linear, without reference.
    ValueError where they are not, and on adding to 16 bits.
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
    wide = state_dtype(left.dtype)
    outs = {wide} if add else {wide, left.dtype}
    names = " or ".join(sorted(map(str, outs)))
    want("multiply", out.dtype in outs, f"out of {names}", str(out.dtype), "round the sum afterwards")
    if impl == "eager":
        left, right = left.to(out.dtype), right.to(out.dtype)
        return out.addmm_(left, right) if add else torch.mm(left, right, out=out)
    want_alike("multiply", left, right)
    return importlib.import_module("hotplate.kernels.product.native").multiply(left, right, out, add=add)


def choose(room: str, impl: str, x: Tensor, multiplications: int, known: tuple[str, ...]) -> str:
    """choose_impl, but for what was measured; `multiplications` of the whole product."""
    served = x.device.type == "cpu" and (x.dtype == torch.float32 or takes_halves(x.dtype))
    if impl == "auto":
        served = served and not torch.is_autocast_enabled("cpu")
        if not served or multiplications < SMALLEST or choose_impl("product", "auto", x, known) != "native":
            return "eager"
        return "native" if _pays() else "eager"
    if impl == "native":
        wanted = "a CPU tensor of float32, or of bfloat16 on a processor that multiplies it, with impl='native'"
        want(room, served, wanted, f"{x.dtype} on {x.device}", "use impl='eager'")
        choose_impl("product", "native", x, known)
        return "native"
    return choose_impl(room, impl, x, known)


@constant
def takes_halves(dtype: torch.dtype) -> bool:
    """Whether products of operands of this 16-bit dtype on a CPU take half the time of fp32's, with fp32 sums."""
    return dtype == torch.bfloat16 and importlib.import_module("hotplate.kernels.product.native").takes_halves()


@constant
def _pays() -> bool:
    return importlib.import_module("hotplate.kernels.product.native").pays()


def want_alike(room: str, x: Tensor, *others: Tensor | None) -> None:
    """C reads memory as what x is."""
    for other in others:
        if other is not None:
            alike, found = (other.dtype, other.device) == (x.dtype, x.device), f"{other.dtype} on {other.device}"
            want(room, alike, f"{x.dtype} on {x.device} throughout", found, "cast it")
