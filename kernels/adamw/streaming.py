"""AdamW as two Triton launches over all tensors, one for their steps, of numbers, and one for their elements: a table
of addresses, and for each program of the second its tensor and block.

Letters: N tensors, P programs. Importing this needs Triton.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.launch import launch

BLOCK = 2048  # elements of a program: four loads of 16 bytes per lane and array of four warps
NUM_WARPS = 4
FACTORS = 128  # tensors of a program of factors_kernel
ALIGNMENT = 16  # bytes; what wide loads need
STEP = 4  # column of the table


@triton.jit
def _update(w, g, m, v, copy, n, size, scale, decay, step_size, root, rest1, beta2, rest2, eps, FULL: tl.constexpr):
    """FULL: all of n is inside; without a mask that the compiler knows nothing about, loads are wide."""
    inside = None if FULL else n < size
    d = tl.load(g + n, mask=inside).to(tl.float32) * scale
    first = tl.load(m + n, mask=inside)
    second = tl.load(v + n, mask=inside)
    weight = tl.load(w + n, mask=inside)
    first = first + rest1 * (d - first)
    second = beta2 * second + rest2 * d * d
    weight = weight * decay - step_size * first / (tl.sqrt(second) * root + eps)
    tl.store(m + n, first, mask=inside)
    tl.store(v + n, second, mask=inside)
    tl.store(w + n, weight, mask=inside)
    if copy is not None:
        tl.store(copy + n, weight.to(copy.dtype.element_ty), mask=inside)


@triton.jit
def factors_kernel(
    table, factors, skipped, lr, weight_decay, N,
    LOG1: tl.constexpr, LOG2: tl.constexpr, ON_DEVICE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One step more of BN tensors, unless skipped, and what it makes of their updates: fp32 [N, 3], rounded once.

    lr: a number, or a tensor [] where ON_DEVICE. LOG1, LOG2: binary logarithms of the betas. In fp64, which would cost
    the update itself a lot on a GPU with few such units.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    step = tl.load(table + 7 * n + 4, mask=n < N).to(tl.pointer_type(tl.float32))
    t = tl.load(step, mask=n < N, other=0.0) + 1
    if tl.load(skipped) == 0.0:
        tl.store(step, t, mask=n < N)
    rate = (tl.load(lr) if ON_DEVICE else lr) + tl.zeros([BN], tl.float64)
    t = t.to(tl.float64)
    tl.store(factors + 3 * n, 1 - rate * weight_decay, mask=n < N)
    tl.store(factors + 3 * n + 1, rate / (1 - tl.exp2(t * LOG1)), mask=n < N)
    tl.store(factors + 3 * n + 2, 1 / tl.sqrt(1 - tl.exp2(t * LOG2)), mask=n < N)


@triton.jit
def update_kernel(
    table, factors, places, scale, skipped, rest1, beta2, rest2, eps,
    BLOCK: tl.constexpr, COPY: tl.constexpr, GRADIENT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """table int64 [N, 7]: addresses of weight, gradient, m, v, step, copy, and the size; places int32 [P, 2].

    COPY: the element type of the copies, or None. GRADIENT: that of the gradients.
    """
    if tl.load(skipped) == 0.0:
        tensor = tl.load(places + 2 * tl.program_id(0))
        block = tl.load(places + 2 * tl.program_id(0) + 1).to(tl.int64)
        row = table + 7 * tensor
        size = tl.load(row + 6)
        w = tl.load(row).to(tl.pointer_type(tl.float32))
        g = tl.load(row + 1).to(tl.pointer_type(GRADIENT))
        m = tl.load(row + 2).to(tl.pointer_type(tl.float32))
        v = tl.load(row + 3).to(tl.pointer_type(tl.float32))
        copy = None
        if COPY is not None:
            copy = tl.load(row + 5).to(tl.pointer_type(COPY))
        if ALIGNED:
            w, g, m, v = tl.multiple_of(w, 16), tl.multiple_of(g, 16), tl.multiple_of(m, 16), tl.multiple_of(v, 16)
            if copy is not None:
                copy = tl.multiple_of(copy, 16)
        n = block * BLOCK + tl.arange(0, BLOCK)
        factor = tl.load(scale)
        decay = tl.load(factors + 3 * tensor)
        step_size = tl.load(factors + 3 * tensor + 1)
        root = tl.load(factors + 3 * tensor + 2)
        if (block + 1) * BLOCK <= size:
            _update(w, g, m, v, copy, n, size, factor, decay, step_size, root, rest1, beta2, rest2, eps, FULL=True)
        else:
            _update(w, g, m, v, copy, n, size, factor, decay, step_size, root, rest1, beta2, rest2, eps, FULL=False)


@lru_cache(maxsize=32)  # weights stay where they are and gradients mostly come back to where they were
def _tables(rows: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The addresses [N, 7] and the places [P, 2], on the device: they hold numbers, not memory."""
    places = [(index, block) for index, row in enumerate(rows) for block in range(triton.cdiv(row[-1], BLOCK))]
    made = torch.tensor(rows, dtype=torch.int64), torch.tensor(places, dtype=torch.int32)
    if device.type == "cuda":
        made = made[0].pin_memory(), made[1].pin_memory()
    return made[0].to(device, non_blocking=True), made[1].to(device, non_blocking=True)


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scale: Tensor,
    skipped: Tensor,
) -> None:
    """See op.py."""
    columns = [[x.data_ptr() for x in tensors] for tensors in (weights, gradients, first, second, steps)]
    columns.append([0] * len(weights) if copies is None else [x.data_ptr() for x in copies])
    columns.append([x.numel() for x in weights])
    table, places = _tables(tuple(zip(*columns, strict=True)), weights[0].device)
    aligned = all(pointer % ALIGNMENT == 0 for n, column in enumerate(columns[:-1]) if n != STEP for pointer in column)
    like, N = weights[0], len(weights)
    factors = like.new_empty(N, 3)
    logs = [math.log2(beta) if beta else -math.inf for beta in betas]
    launch(
        factors_kernel, like, triton.cdiv(N, FACTORS), table, factors, skipped,
        lr if isinstance(lr, Tensor) else float(lr), weight_decay, N,
        num_warps=NUM_WARPS, LOG1=logs[0], LOG2=logs[1], ON_DEVICE=isinstance(lr, Tensor), BN=FACTORS,
    )  # fmt: skip
    launch(
        update_kernel, like, len(places),
        table, factors, places, scale, skipped, 1 - betas[0], betas[1], 1 - betas[1], eps,
        num_warps=NUM_WARPS, BLOCK=BLOCK, COPY=None if copies is None else TYPES[copies[0].dtype],
        GRADIENT=TYPES[gradients[0].dtype], ALIGNED=aligned,
    )  # fmt: skip
