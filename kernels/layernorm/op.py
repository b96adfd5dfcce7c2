"""LayerNorm over the last axis, alone or of a residual sum: contract, checks and the choice of implementation.

Letters: D features.
"""

import torch
from torch import Tensor

from hotplate.kernels.launch import choose_impl
from hotplate.kernels.layernorm import reference
from hotplate.kernels.norm import forms


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, impl: str = "auto") -> Tensor:
    """y = weight (x - mean(x)) / sqrt(var(x) + eps) + bias, over the last axis; var is the biased variance.

    x [..., D] bf16|fp16|fp32|fp64, any strides; weight and bias [D] of any float dtype. Returns the shape and dtype of
    x. Sums and gradients of weight and bias in fp32 (fp64 for fp64). Gradients to x, weight and bias.
    impl: auto, eager (torch's own), native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16; D <= 8192) or
    reference. auto is triton on CUDA; on a CPU torch's own for fp32, where C is not faster, and native for bf16 where a
    C compiler is found. A name never falls back. Memory traffic at the least: 2 values per element forward, 3 backward.
    ValueError on any other shape, dtype, device or impl. Source: Ba et al. 2016, arXiv 1607.06450.
    """
    impl = _choose(impl, x)
    forms.check("layernorm", x, None, weight, bias, eps)
    if impl == "reference":
        return reference.layernorm(x, weight, bias, eps)
    return forms.apply("layernorm", impl, x, None, weight, bias, eps)[0]


def add_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(layernorm(s), s) with s = x + residual, rounded to the dtype of x before the norm: one pass, not two.

    residual like x; the rest as in layernorm. Gradients to x, residual, weight
    and bias. Memory traffic at the least: 4 values per element forward, 4 backward.
    """
    impl = _choose(impl, x)
    forms.check("add_layernorm", x, residual, weight, bias, eps)
    if impl == "reference":
        return reference.add_layernorm(x, residual, weight, bias, eps)
    return forms.apply("add_layernorm", impl, x, residual, weight, bias, eps)


def _choose(impl: str, x: Tensor) -> str:
    """choose_impl, but for what was measured: C is no faster than torch's fp32 form on a CPU (docs/log.md)."""
    if impl == "auto" and x.device.type == "cpu" and x.dtype == torch.float32:
        return "eager"
    return choose_impl("layernorm", impl, x)
