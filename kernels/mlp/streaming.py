"""The activation as two elementwise Triton kernels, visible to torch.compile (torch.library.triton_op).

Letters: M rows, F features, BF features of a program, S stripes of rows. Tensors come contiguous. Importing this needs
Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import sigmoid
from hotplate.kernels.bias import room_for
from hotplate.kernels.launch import interpreting, power_of_2, wrap_triton
from hotplate.kernels.mlp import autograd
from hotplate.kernels.sums import add_up

MOST_FEATURES = 1024  # of a program: 16 bytes of 16-bit values per lane of four warps
NUM_WARPS = 4
PROGRAMS = 2048  # of a backward that makes a bias's gradient: all of any GPU's processors, several times; not timed

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
def backward_kernel(dy, x, dx, parts, M, F, S, KIND: tl.constexpr, BF: tl.constexpr, FAST: tl.constexpr):
    """A program owns BF features and walks over every S-th row. parts [S, features of x], sums of dx over its rows, may
    be None."""
    blocks = tl.cdiv(F, BF)
    stripe, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    f = block.to(tl.int64) * BF + tl.arange(0, BF)
    inside = f < F
    total, value_total = tl.zeros([BF], tl.float32), tl.zeros([BF], tl.float32)
    for m in range(stripe, M, S):
        row = tl.full([], m, tl.int64)
        d = tl.load(dy + row * F + f, mask=inside, other=0.0).to(tl.float32)
        if KIND == "swiglu":
            at = row * 2 * F + f
            gate = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(x + at + F, mask=inside, other=0.0).to(tl.float32)
            s = sigmoid(gate, FAST)
            out, value_out = d * value * (s * (1.0 + gate * (1.0 - s))), d * (gate * s)
            tl.store(dx + at + F, value_out.to(dx.dtype.element_ty), mask=inside)
            value_total += value_out
        else:
            at = row * F + f
            v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            if KIND == "gelu":
                square = v * v
                double = v * (1.5957691216057308 + 0.07135481282636243 * square)
                s = sigmoid(double, FAST)
                rest = sigmoid(-double, FAST)  # 1 - s without cancellation, which v^3 would magnify
                out = d * (s + s * rest * v * (1.5957691216057308 + 0.2140644384790873 * square))
            else:
                out = d * (2.0 * tl.where(v < 0.0, 0.0, v))
        tl.store(dx + at, out.to(dx.dtype.element_ty), mask=inside)
        total += out
    if parts is not None:
        if KIND == "swiglu":
            own = parts + stripe.to(tl.int64) * 2 * F + f
            tl.store(own + F, value_total, mask=inside)
        else:
            own = parts + stripe.to(tl.int64) * F + f
        tl.store(own, total, mask=inside)


def _sizes(x: Tensor, kind: str, apart: bool) -> tuple[int, int, int]:
    """Rows, F and BF; without a gate all rows are one, unless they are to be told apart."""
    M, F = x.numel() // max(1, x.shape[-1]), x.shape[-1] // (2 if kind == "swiglu" else 1)
    if kind != "swiglu" and not apart:
        M, F = 1, M * F
    return M, F, min(MOST_FEATURES, max(16, power_of_2(F)))


def forward(x: Tensor, kind: str, bias: Tensor | None) -> Tensor:
    """y [..., F]; bias is for the backward."""
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2 if kind == "swiglu" else x.shape[-1])
    M, F, BF = _sizes(x, kind, False)
    if programs := M * triton.cdiv(F, BF):
        wrap_triton(forward_kernel)[(programs,)](
            x, y, F, KIND=kind, BF=BF, FAST=not interpreting(), num_warps=NUM_WARPS
        )
    return y


def backward(dy: Tensor, x: Tensor, kind: str, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx like x, and with a bias the sum of dx over rows, like it; else empty."""
    dx, dbias = torch.empty_like(x), room_for(bias, x)
    M, F, BF = _sizes(x, kind, bias is not None)
    blocks = triton.cdiv(F, BF)
    S = M if bias is None else min(M, triton.cdiv(PROGRAMS, max(1, blocks)))
    parts = None if bias is None else x.new_empty(S, x.shape[-1], dtype=torch.float32)
    if S * blocks:
        wrap_triton(backward_kernel)[(S * blocks,)](
            dy, x, dx, parts, M, F, S, KIND=kind, BF=BF, FAST=not interpreting(), num_warps=NUM_WARPS
        )
    if parts is not None:
        add_up(parts, dbias)
    return dx, dbias


operator = torch.library.triton_op("hotplate::mlp", forward, mutates_args=())
backward_operator = torch.library.triton_op("hotplate::mlp_backward", backward, mutates_args=())
torch.library.register_autograd("hotplate::mlp", autograd.derivative(backward_operator), setup_context=autograd.setup)
