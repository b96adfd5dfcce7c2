"""The activation between an MLP's two products: contract, checks and the choice of implementation.

Letters: M rows, F features.
"""

import importlib

import torch.nn.functional as F
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import choose_impl
from hotplate.kernels.mlp import reference

KINDS = ("swiglu", "gelu", "relu2")
# A form is a module with `operator`; triton's is imported when it is asked for.
MODULES = {"native": "hotplate.kernels.mlp.native", "triton": "hotplate.kernels.mlp.streaming"}


def activation(x: Tensor, kind: str, *, impl: str = "auto") -> Tensor:
    """swiglu: silu(gate) * value from x [..., 2 F], gate first; gelu (tanh form), relu2 (max(x, 0)^2): from [..., F].

    x bf16|fp16|fp32|fp64, any strides. Returns [..., F] in the dtype of x; arithmetic in fp32 (fp64 for fp64), rounded
    once. The gradient is computed from x alone: nothing else is kept for it.
    impl: auto, eager (torch's own), native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16) or reference. auto is
    triton on CUDA, native on a CPU where a C compiler is found, else eager; a name never falls back.
    Memory traffic at the least, in values per element of the result: swiglu 3 forward and 5 backward, else 2 and 3.
    ValueError on any other kind, shape, dtype, device or impl. Sources: Shazeer 2020, arXiv 2002.05202 (SwiGLU);
    Hendrycks and Gimpel 2016, arXiv 1606.08415; So et al. 2021, arXiv 2109.08668 (squared ReLU).
    """
    impl = choose_impl("mlp", impl, x)
    want("mlp", kind in KINDS, f"kind in {sorted(KINDS)}", repr(kind), "name one of these")
    want_float("mlp", "x", x)
    gated = kind == "swiglu"
    even = x.ndim > 0 and (not gated or x.shape[-1] % 2 == 0)
    want("mlp", even, "x [..., 2 F]" if gated else "x [..., F]", str(list(x.shape)), "swiglu stacks gate and value")
    if impl == "reference":
        return reference.activation(x, kind)
    if impl == "eager":
        return _eager(x, kind)
    return importlib.import_module(MODULES[impl]).operator(x.contiguous(), kind)


def _eager(x: Tensor, kind: str) -> Tensor:
    """Two or three of torch's operations; 16-bit products are rounded twice."""
    if kind == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    return F.relu(x).square() if kind == "relu2" else F.gelu(x, approximate="tanh")
