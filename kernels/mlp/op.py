"""The activation between an MLP's two products: contract, checks and the choice of implementation.

Letters: M rows, F features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.kernels.bias import received, want_bias
from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import choose_impl, operator
from hotplate.kernels.mlp import reference

FUSED = ("swiglu", "gelu", "relu2")  # of these torch makes several passes
KINDS = (*FUSED, "gelu_erf", "relu")
# The module that registers a form's operator, and the operator's name; triton's is imported when it is asked for.
OPERATORS = {
    "native": ("hotplate.kernels.mlp.native", "mlp_native"),
    "triton": ("hotplate.kernels.mlp.streaming", "mlp"),
}


def activation(x: Tensor, kind: str, bias: Tensor | None = None, *, impl: str = "auto") -> Tensor:
    """swiglu: silu(gate) * value from x [..., 2 F], gate first; from [..., F]: gelu (tanh form), gelu_erf (exact), relu
    and relu2 (max(x, 0)^2).

    x bf16|fp16|fp32|fp64, any strides. Returns [..., F] in the dtype of x; arithmetic in fp32 (fp64 for fp64), rounded
    once. The gradient is computed from x alone: nothing else is kept for it.
    bias: None, or like a row of x, of any float dtype: what x has already, for its gradient alone (kernels/bias.py).
    impl: auto, eager (torch's own), native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16) or reference. auto is
    triton on CUDA, but without a bias eager within torch.compile there, native on a CPU where a C compiler is found,
    else eager; gelu_erf and relu have torch's form only, which is one pass. A name never falls back.
    Memory traffic at the least, in values per element of the result: swiglu 3 forward and 5 backward, else 2 and 3; in
    triton the gradient of the bias adds none, in the others one pass over the gradient of x.
    ValueError on any other kind, shape, dtype, device or impl. Sources: Shazeer 2020, arXiv 2002.05202 (SwiGLU);
    Hendrycks and Gimpel 2016, arXiv 1606.08415; So et al. 2021, arXiv 2109.08668 (squared ReLU).
    """
    want("mlp", kind in KINDS, f"kind in {sorted(KINDS)}", repr(kind), "name one of these")
    if kind not in FUSED:
        known = ("auto", "eager", "reference")
        want("mlp", impl in known, f"impl in {known} for {kind}", repr(impl), "torch does it in one pass")
        impl = "reference" if impl == "reference" else "eager"
    if impl == "auto" and bias is None and x.is_cuda and torch.compiler.is_compiling():
        impl = "eager"  # the compiler makes one pass of it, and needs no launch of ours for that
    impl = choose_impl("mlp", impl, x)
    want_float("mlp", "x", x)
    gated = kind == "swiglu"
    even = x.ndim > 0 and (not gated or x.shape[-1] % 2 == 0)
    want("mlp", even, "x [..., 2 F]" if gated else "x [..., F]", str(list(x.shape)), "swiglu stacks gate and value")
    want_bias("mlp", bias, x, 1)
    if impl == "triton":
        made: Tensor = operator(*OPERATORS[impl])(x.contiguous(), kind, bias)
        return made
    x = received(x, bias)
    if impl == "reference":
        return reference.activation(x, kind)
    return _eager(x, kind) if impl == "eager" else operator(*OPERATORS[impl])(x.contiguous(), kind)


def _eager(x: Tensor, kind: str) -> Tensor:
    """Two or three of torch's operations; 16-bit products are rounded twice."""
    if kind == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    if kind.startswith("relu"):
        return F.relu(x).square() if kind == "relu2" else F.relu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu" else "none")
