"""A projection: contract, checks and the choice of implementation.

Letters: I inputs, O outputs.
"""

import torch.nn.functional as F
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import operator
from hotplate.kernels.linear import reference
from hotplate.kernels.product.choice import choose, want_alike

IMPLS = ("auto", "eager", "native", "reference")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """y = x W^T + b.

    x [..., I] and weight [O, I], bias [O] or None, of one dtype bf16|fp16|fp32|fp64 and any strides. Returns [..., O]
    in that dtype; gradients to all three, sums in fp32 or wider.
    impl: auto, eager (torch's own: the vendor's library), native (C on a CPU; fp32, and bf16 where the processor has
    AVX512_BF16) or reference. auto is native on CPUs where that was measured to be faster (AMD with AVX-512) and a C
    compiler is found, from 2^20 multiplications on and outside autocast; else eager. A name never falls back.
    Flops: 2 I O forward, 4 I O backward per row. ValueError on any other shape, dtype, device or impl.
    """
    impl = choose("linear", impl, x, x.numel() * weight.shape[0] if weight.ndim else 0, IMPLS)
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
    want_alike("linear", x, weight, bias)
    product = operator("hotplate.kernels.linear.native", "linear_native")
    y = product(x.flatten(0, -2) if x.ndim != 1 else x[None], weight, None if bias is None else bias.contiguous())
    return y.unflatten(0, x.shape[:-1]) if x.ndim != 1 else y[0]
