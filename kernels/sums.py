"""Sums over a program's rows, added up in Triton: no atomics, so runs repeat bit for bit. Importing this needs Triton.

Letters: S stripes, each a partial sum that one program has made, D numbers of it.
"""

import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.launch import launch, wrap_triton

SUM_COLUMNS, SUM_STRIPES = 32, 128  # of a program: its four warps load 16 bytes per lane


@triton.jit
def sums_kernel(parts, other_parts, result, other, S, D, BS: tl.constexpr, BD: tl.constexpr):
    """result [D], and other where it is not None, from parts [S, D] of stripes, rounded once."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    total, other_total = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    for first in range(0, S, BS):
        stripe = first + tl.arange(0, BS)
        inside = (stripe < S)[:, None] & (d < D)[None, :]
        at = stripe[:, None] * D + d[None, :]
        total += tl.sum(tl.load(parts + at, mask=inside, other=0.0), 0)
        if other is not None:
            other_total += tl.sum(tl.load(other_parts + at, mask=inside, other=0.0), 0)
    tl.store(result + d, total.to(result.dtype.element_ty), mask=d < D)
    if other is not None:
        tl.store(other + d, other_total.to(other.dtype.element_ty), mask=d < D)


def add_up(
    parts: Tensor,
    result: Tensor,
    other_parts: Tensor | None = None,
    other: Tensor | None = None,
    *,
    opaque: bool = False,
) -> None:
    """Fills result, of D numbers side by side, with the sum of parts fp32 [S, D], and other with that of other_parts.
    opaque: in an operator that torch.compile does not look into; else in a triton_op."""
    S, D = parts.shape
    operands, programs = (parts, other_parts, result, other, S, D), triton.cdiv(D, SUM_COLUMNS)
    if opaque:
        launch(sums_kernel, parts, programs, *operands, num_warps=4, BS=SUM_STRIPES, BD=SUM_COLUMNS)
    else:
        wrap_triton(sums_kernel)[(programs,)](*operands, BS=SUM_STRIPES, BD=SUM_COLUMNS)
