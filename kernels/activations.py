"""Activations for Triton kernels, in fp32. Importing this needs Triton.

FAST: single machine instructions (ex2, rcp: 2 units in the last place, denormals are zero), which the interpreter does
not have; else Triton's own functions. NaN stays NaN and infinity saturates in both. The two `approximate_` functions
are one instruction each with a relative error of 2^-11: for values that are rounded to 16 bits at once, never for a
state. exp(x) is taken as 2^(x / ln 2).
"""

import triton
import triton.language as tl

# Numbers stand in the code as literals: the interpreter of Triton 3.9 cannot multiply a module's constexpr by a block.


@triton.jit
def _exp2(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def _reciprocal(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)): 2 special-function instructions."""
    return _reciprocal(1.0 + _exp2(-1.4426950408889634 * x, FAST), FAST)


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """2 special-function instructions; relative error of 2^-22 or less, tiny x included."""
    square = x * x
    # Minimax of (tanh(x) - x) / x^3 on |x| < 1/2 for the relative error of tanh, 2^-26; fitted in float64.
    p = 1.724148728e-2 * square - 5.304549262e-2
    p = p * square + 1.332587898e-1
    p = p * square - 3.333314359e-1
    small = p * square * x + x
    large = 1.0 - 2.0 * _reciprocal(1.0 + _exp2(2.8853900817779268 * tl.abs(x), FAST), FAST)
    large = tl.where(x < 0.0, -large, large)
    return tl.where(tl.abs(x) < 0.5, small, large)  # below, 1 - 2 / (1 + exp(2x)) loses digits


@triton.jit
def approximate_tanh(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tanh(x, FAST)


@triton.jit
def approximate_sigmoid(x, FAST: tl.constexpr):
    return 0.5 + 0.5 * approximate_tanh(0.5 * x, FAST)
