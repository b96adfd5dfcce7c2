"""The activation as two elementwise Triton kernels, visible to torch.compile (torch.library.triton_op).

Letters: M rows, F features, BF features of a program. Tensors come contiguous. Importing this needs Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from hotplate.kernels.activations import sigmoid
from hotplate.kernels.launch import interpreting, power_of_2
from hotplate.kernels.mlp import autograd

MOST_FEATURES = 1024  # of a program: 16 bytes of 16-bit values per lane of four warps
NUM_WARPS = 4

# The slope of gelu's sigmoid: 2 sqrt(2 / pi) (1 + 0.044715 x^2); 0.5 (1 + tanh z) is sigmoid(2 z), which does not
# cancel. Numbers stand in the code as literals, as in kernels/activations.py.


@triton.jit
def forward_kernel(x, y, F, KIND: tl.constexpr, BF: tl.constexpr, FAST: tl.constexpr):
    blocks = tl.cdiv(F, BF)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    f = (tl.program_id(0) % blocks).to(tl.int64) * BF + tl.arange(0, BF)
    inside = f < F
    at = row * F + f
    if KIND == "swiglu":
        gate = tl.load(x + at + row * F, mask=inside, other=0.0).to(tl.float32)
        out = gate * sigmoid(gate, FAST) * tl.load(x + at + row * F + F, mask=inside, other=0.0).to(tl.float32)
    else:
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if KIND == "gelu":
            out = v * sigmoid(v * (1.5957691216057308 + 0.07135481282636243 * v * v), FAST)
        else:
            v = tl.where(v < 0.0, 0.0, v)
            out = v * v
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(dy, x, dx, F, KIND: tl.constexpr, BF: tl.constexpr, FAST: tl.constexpr):
    blocks = tl.cdiv(F, BF)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    f = (tl.program_id(0) % blocks).to(tl.int64) * BF + tl.arange(0, BF)
    inside = f < F
    d = tl.load(dy + row * F + f, mask=inside, other=0.0).to(tl.float32)
    if KIND == "swiglu":
        at = row * 2 * F + f
        gate = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at + F, mask=inside, other=0.0).to(tl.float32)
        s = sigmoid(gate, FAST)
        tl.store(dx + at, (d * value * (s * (1.0 + gate * (1.0 - s)))).to(dx.dtype.element_ty), mask=inside)
        tl.store(dx + at + F, (d * (gate * s)).to(dx.dtype.element_ty), mask=inside)
    else:
        at = row * F + f
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if KIND == "gelu":
            square = v * v
            double = v * (1.5957691216057308 + 0.07135481282636243 * square)
            s = sigmoid(double, FAST)
            rest = sigmoid(-double, FAST)  # 1 - s without cancellation, which v^3 would magnify
            slope = s + s * rest * v * (1.5957691216057308 + 0.2140644384790873 * square)
        else:
            slope = 2.0 * tl.where(v < 0.0, 0.0, v)
        tl.store(dx + at, (d * slope).to(dx.dtype.element_ty), mask=inside)


def _sizes(x: Tensor, kind: str) -> tuple[int, int, int]:
    """Programs, F and BF; without a gate all rows are one."""
    M, F = (x.numel() // max(1, x.shape[-1]), x.shape[-1] // 2) if kind == "swiglu" else (1, x.numel())
    BF = min(MOST_FEATURES, max(16, power_of_2(F)))
    return M * triton.cdiv(F, BF), F, BF


def forward(x: Tensor, kind: str) -> Tensor:
    """y [..., F]."""
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2 if kind == "swiglu" else x.shape[-1])
    programs, F, BF = _sizes(x, kind)
    if programs:
        wrap_triton(forward_kernel)[(programs,)](
            x, y, F, KIND=kind, BF=BF, FAST=not interpreting(), num_warps=NUM_WARPS
        )
    return y


def backward(dy: Tensor, x: Tensor, kind: str) -> Tensor:
    """dx like x."""
    dx = torch.empty_like(x)
    programs, F, BF = _sizes(x, kind)
    if programs:
        wrap_triton(backward_kernel)[(programs,)](
            dy, x, dx, F, KIND=kind, BF=BF, FAST=not interpreting(), num_warps=NUM_WARPS
        )
    return dx


operator = torch.library.triton_op("hotplate::mlp", forward, mutates_args=())
backward_operator = torch.library.triton_op("hotplate::mlp_backward", backward, mutates_args=())
torch.library.register_autograd("hotplate::mlp", autograd.derivative(backward_operator), setup_context=autograd.setup)
