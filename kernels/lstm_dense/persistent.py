"""The dense LSTM forward as one Triton kernel for all steps; each program keeps DS columns of every gate's matrix.

Letters: B rows, T steps, D width, DS columns of h that a program makes, BB rows of a group, G = D / DS programs of a
group, PIECE rows of R in one product. Importing this needs Triton.

A step needs the whole h of the step before, which G programs made. They exchange it through memory, in two slots that
stay in the second-level cache; exchange.py says how they wait for each other. The backward is the same in reverse
(persistent_backward.py). What does not fit runs step by step (steps.py).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import approximate_sigmoid, approximate_tanh, sigmoid, tanh
from hotplate.kernels.launch import interpreting
from hotplate.kernels.lstm_dense import persistent_backward, steps
from hotplate.kernels.lstm_dense.exchange import FLAGS, ROWS, SLICE, WARPS, announce, await_step, new_flags
from hotplate.kernels.recurrence.autograd import Form

MOST_ROUNDS = 3  # launches after one another; an estimate of where one product per step wins, not yet measured
WIDTHS = range(128, 1537, 128)  # 1536 takes 251 of 255 registers


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    gates, recurrent, keep, exchange, flags, h, h_last, cells, T, B, row_stride, step_stride, gate_stride, offset,
    D: tl.constexpr, DS: tl.constexpr, BB: tl.constexpr, G: tl.constexpr, PIECE: tl.constexpr, FLAGS: tl.constexpr,
    FAST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """exchange [2, B, D]: slot 0 holds h0, masked; flags [groups, FLAGS] zeros; cells [T + 1, B, D].

    Products are [4 DS, PIECE] x [PIECE, BB]: gates along the rows, so that they split into equal blocks of registers.
    """
    part = tl.program_id(0)
    row = tl.program_id(1) * BB + tl.arange(0, BB)
    inside = (row < B)[None, :]
    gate = tl.arange(0, 4 * DS) // DS
    column = part * DS + tl.arange(0, 4 * DS) % DS
    own = part * DS + tl.arange(0, DS)
    piece = tl.arange(0, PIECE)
    matrices = ()
    for n in tl.static_range(D // PIECE):
        at = recurrent + (gate * D * D + column)[:, None] + (n * PIECE + piece)[None, :] * D
        matrices = matrices + (tl.load(at),)  # type: ignore[assignment]
    state = row[None, :] * D + own[:, None]
    c = tl.load(cells + state, mask=inside, other=0.0)
    group = flags + tl.program_id(1) * FLAGS
    x = gates + row[None, :].to(tl.int64) * row_stride + (gate * gate_stride + column)[:, None]
    out = h + row[None, :].to(tl.int64) * T * D + own[:, None]
    for t in range(0, T):
        pre = tl.load(x + tl.cast(t, tl.int64) * step_stride, mask=inside, other=0.0).to(tl.float32)
        await_step(group, t, G, FLAGS)
        slot = exchange + (t % 2) * B * D
        for n in tl.static_range(D // PIECE):
            before = tl.load(
                slot + row[None, :] * D + (n * PIECE + piece)[:, None], mask=inside, other=0.0, cache_modifier=".cg"
            )
            if UPCAST:
                pre += tl.dot(matrices[n].to(tl.float32), before.to(tl.float32), input_precision="ieee")
            else:
                pre = tl.dot(matrices[n], before, pre)
        pairs = tl.permute(tl.reshape(pre, (2, 2, DS, BB)), (2, 3, 0, 1))
        i_z, f_o = tl.split(pairs)
        i, z = tl.split(i_z)
        f, o = tl.split(f_o)
        c = sigmoid(f + offset, FAST) * c + sigmoid(i, FAST) * tanh(z, FAST)
        h_wide = approximate_sigmoid(o, FAST) * approximate_tanh(c, FAST)
        h_now = h_wide.to(h.dtype.element_ty)
        if keep is not None:
            kept = tl.load(keep + row * (T + 1) + t + 1, mask=row < B, other=0.0)[None, :]
            h_wide = tl.where(kept != 0.0, h_wide, 0.0)
            c = tl.where(kept != 0.0, c, 0.0)
        # Before this step began, every program had finished the step before, and with it all reads of this slot.
        tl.store(exchange + ((t + 1) % 2) * B * D + state, h_wide.to(h.dtype.element_ty), mask=inside)
        announce(group, part, G, FLAGS)
        tl.store(out + tl.cast(t, tl.int64) * D, h_now, mask=inside)
        tl.store(cells + tl.cast(t + 1, tl.int64) * (B * D) + state, c, mask=inside)
        if t == T - 1:
            tl.store(h_last + state, h_now.to(tl.float32), mask=inside)


def piece(D: int) -> int:
    """The largest power of two that divides D, if three such pieces make D; else 128; beyond 1280 64: more spill."""
    largest = D & -D
    if D > 1280:
        return 64
    return largest if D // largest <= 3 else min(largest, 128)


def rows_at_once(D: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows that one launch can hold, 0 where the form does not apply: 16-bit, D of WIDTHS, compute capability 9."""
    if interpreting():
        return ROWS if D == SLICE else 0  # programs run one after another there: a group must be one program
    if dtype == torch.float32 or D not in WIDTHS:
        return 0
    properties = torch.cuda.get_device_properties(device)
    if properties.major != 9:  # the only architecture whose machine code was looked at
        return 0
    return ROWS * (properties.multi_processor_count // (D // SLICE))


def _fits(B: int, D: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the persistent form runs, forward and backward; else steps.py does."""
    at_once = rows_at_once(D, dtype, device)
    return at_once > 0 and MOST_ROUNDS * at_once >= B


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, _, _, D = gates.shape
    if not _fits(B, D, gates.dtype, gates.device):
        return steps.forward(gates, recurrent, h0, c0, resets, forget_offset, keep)
    at_once = rows_at_once(D, gates.dtype, gates.device)
    matrix = recurrent[:, 0].to(gates.dtype).contiguous()
    x = gates if gates.stride(-1) == 1 else gates.contiguous()
    h, cells = gates.new_empty(B, T, 1, D), gates.new_empty(T + 1, B, D, dtype=torch.float32)
    h_last, c_last = (cells.new_empty(B, 1, D) for _ in range(2))
    for start in range(0, B, at_once):
        rows = slice(start, min(B, start + at_once))
        part_h0, part_c0 = (None if state is None else state[rows, 0] for state in (h0, c0))
        part_resets = None if resets is None else resets[rows]
        h[rows], h_last[rows, 0], part = _launch(x[rows], matrix, part_h0, part_c0, part_resets, forget_offset)
        cells[:, rows], c_last[rows, 0] = part, part[T]
    return h, h_last, c_last, cells if keep else cells.new_empty(0), cells.new_empty(0)


def _launch(
    x: Tensor, matrix: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, forget_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, T, 1, D], h_last [B, D] and cells [T + 1, B, D] of as many rows as fit."""
    B, T, _, _, D = x.shape
    G, groups = D // SLICE, triton.cdiv(B, ROWS)
    h, cells = x.new_empty(B, T, 1, D), x.new_empty(T + 1, B, D, dtype=torch.float32)
    exchange, h_last = x.new_zeros(2, B, D), cells.new_empty(B, D)
    cells[0] = 0 if c0 is None else c0
    if h0 is not None:
        exchange[0] = h0
    steps.empty_first((exchange[0], cells[0]), resets)
    forward_kernel[(G, groups)](
        x, matrix, steps.keeping(resets), exchange, new_flags(groups, x.device), h, h_last, cells, T, B,
        *x.stride()[:3], forget_offset, D=D, DS=SLICE, BB=ROWS, G=G, PIECE=piece(D), FLAGS=FLAGS,
        FAST=not interpreting(), UPCAST=interpreting(), num_warps=WARPS, launch_cooperative_grid=G > 1,
    )  # fmt: skip
    return h, h_last, cells


def _walk_back(
    product: Tensor,
    gates: Tensor,
    cells: Tensor,
    recurrent: Tensor,
    resets: Tensor | None,
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dgates: Tensor,
    forget_offset: float,
) -> Tensor:
    """steps.walk_back, by launches of as many rows as fit."""
    B, D, keep = len(product), product.shape[3], steps.keeping(resets)
    at_once, matrix = rows_at_once(D, dgates.dtype, dgates.device), recurrent[:, 0].to(dgates.dtype).contiguous()
    dc0 = product.new_empty(B, D)
    for start in range(0, B, at_once):
        rows = slice(start, min(B, start + at_once))
        kept, last_h, last_c = (None if x is None else x[rows] for x in (keep, dh_last, dc_last))
        part = (
            product[rows],
            gates[rows],
            cells[:, rows].contiguous(),
            matrix,
            kept,
            dh[rows],
            last_h,
            last_c,
            dgates[rows],
        )
        dc0[rows] = persistent_backward.walk_back(*part, forget_offset)
    return dc0


def backward(dh: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See steps.backward."""
    B, _, _, D = dh.shape
    return steps.backward(dh, *others, walk=_walk_back if _fits(B, D, others[2].dtype, dh.device) else steps.walk_back)


FORM = Form(forward, backward, steps.kept, needs_gates=True)
