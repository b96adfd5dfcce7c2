"""RMSNorm over the last axis, alone or of a residual sum: contract, checks and the choice of implementation.

Letters: D features.
"""

from torch import Tensor

from hotplate.kernels.launch import choose_impl
from hotplate.kernels.norm import forms
from hotplate.kernels.rmsnorm import reference


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5, *, impl: str = "auto") -> Tensor:
    """y = weight x / sqrt(mean(x^2) + eps), over the last axis.

    x [..., D] bf16|fp16|fp32|fp64, any strides; weight [D] of any float dtype. Returns the shape and dtype of x.
    Sums and weight gradient in fp32 (fp64 for fp64). Gradients to x and weight.
    impl: auto, eager (torch's own), native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16; D <= 8192) or
    reference. auto is triton on CUDA, native on a CPU where a C compiler is found, else eager; a name never falls back.
    Memory traffic at the least: 2 values per element forward, 3 backward.
    ValueError on any other shape, dtype, device or impl. Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    impl = choose_impl("rmsnorm", impl, x)
    forms.check("rmsnorm", x, None, weight, None, eps)
    if impl == "reference":
        return reference.rmsnorm(x, weight, eps)
    return forms.apply("rmsnorm", impl, x, None, weight, None, eps)[0]


def add_rmsnorm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(rmsnorm(s), s) with s = x + residual, rounded to the dtype of x before the norm: one pass, not two.

    residual like x; the rest as in rmsnorm. Gradients to x, residual and weight.
    Memory traffic at the least: 4 values per element forward, 4 backward.
    """
    impl = choose_impl("rmsnorm", impl, x)
    forms.check("add_rmsnorm", x, residual, weight, None, eps)
    if impl == "reference":
        return reference.add_rmsnorm(x, residual, weight, eps)
    return forms.apply("add_rmsnorm", impl, x, residual, weight, None, eps)
