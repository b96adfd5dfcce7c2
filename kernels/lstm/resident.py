"""The multi-head LSTM as Triton kernels: a program keeps one head's matrices and the states of BB rows, for all steps.

Letters: B rows, T steps, H heads, K head width, W that width padded to a block, BB rows of a program. Importing this
needs Triton.

forward_kernel holds what is sequential: one product per gate and step. The backward first recomputes all
pre-activations from the stored h (parallel.py), then c (cells_kernel, parallel over columns), then walks back; dR is
made afterwards (parallel.py). So h is all that the forward has to store.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotplate.kernels.activations import approximate_sigmoid, approximate_tanh, sigmoid, tanh
from hotplate.kernels.launch import interpreting, power_of_2
from hotplate.kernels.lstm.parallel import preactivations, product, recurrent_gradient
from hotplate.kernels.recurrence.autograd import Form, Shapes

ROWS = 16  # BB: the least that a matrix unit takes
STAGES = 3  # steps whose gates are under way; two stages hide less than one memory latency
COLUMNS = 128  # of a program of cells_kernel


def warps(W: int) -> int:
    """Warps of the sequential kernels: a step is a chain of latencies, which more lanes shorten."""
    return 4 if W <= 32 else W // 8


@triton.jit
def _matrices(recurrent, head, H, R, K, IN_FIRST: tl.constexpr, W: tl.constexpr, EVEN: tl.constexpr):
    """R_g [in, out] of the four gates, transposed unless IN_FIRST; zeros beyond K."""
    a, b = tl.arange(0, W)[:, None], tl.arange(0, W)[None, :]
    if IN_FIRST:  # noqa: SIM108 (a conditional expression of blocks is no constexpr branch)
        at = recurrent + (head % R) * K * K + a * K + b
    else:
        at = recurrent + (head % R) * K * K + b * K + a
    gate = R * K * K
    if EVEN:
        return tl.load(at), tl.load(at + gate), tl.load(at + 2 * gate), tl.load(at + 3 * gate)
    inside = (a < K) & (b < K)
    i, f = tl.load(at, mask=inside, other=0.0), tl.load(at + gate, mask=inside, other=0.0)
    return i, f, tl.load(at + 2 * gate, mask=inside, other=0.0), tl.load(at + 3 * gate, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    gates, recurrent, h0, c0, keep, h, h_last, c_last, T, B, H, R, K, row_stride, step_stride, gate_stride, head_stride,
    offset, W: tl.constexpr, BB: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, FAST: tl.constexpr,
    HALF: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """h0, c0 [B, H, K] and keep [B, T + 1] may be None; keep is 0 where a document starts. EVEN: K is W.

    A reset replaces the state by 0 at the end of the step before, where h and c still lie as sums do; masking the
    operand of the next product instead took two thirds more instructions.
    """
    head = tl.program_id(0)
    row = tl.program_id(1) * BB + tl.arange(0, BB)
    k = tl.arange(0, W)
    inside = (row < B)[:, None]
    if not EVEN:
        inside = inside & (k < K)[None, :]
    R_i, R_f, R_z, R_o = _matrices(recurrent, head, H, R, K, True, W, EVEN)
    state = row[:, None] * (H * K) + head * K + k[None, :]
    h_now = tl.zeros([BB, W], tl.float32)
    c = tl.zeros([BB, W], tl.float32)
    if h0 is not None:
        h_now = tl.load(h0 + state, mask=inside, other=0.0)
    if c0 is not None:
        c = tl.load(c0 + state, mask=inside, other=0.0)
    if keep is not None:
        kept = tl.load(keep + row * (T + 1), mask=row < B, other=0.0)[:, None]
        h_now = tl.where(kept != 0.0, h_now, 0.0)
        c = tl.where(kept != 0.0, c, 0.0)
    h_now = h_now.to(recurrent.dtype.element_ty)
    x = gates + row[:, None].to(tl.int64) * row_stride + head * head_stride + k[None, :]
    out = h + row[:, None].to(tl.int64) * T * (H * K) + head * K + k[None, :]
    for t in tl.range(0, T, num_stages=STAGES):
        at = x + tl.cast(t, tl.int64) * step_stride
        x_i = tl.load(at, mask=inside, other=0.0)
        x_f = tl.load(at + gate_stride, mask=inside, other=0.0)
        x_z = tl.load(at + 2 * gate_stride, mask=inside, other=0.0)
        x_o = tl.load(at + 3 * gate_stride, mask=inside, other=0.0)
        i = sigmoid(product(h_now, R_i, UPCAST) + x_i.to(tl.float32), FAST)
        f = sigmoid(product(h_now, R_f, UPCAST) + x_f.to(tl.float32) + offset, FAST)
        z = tanh(product(h_now, R_z, UPCAST) + x_z.to(tl.float32), FAST)
        o_pre = product(h_now, R_o, UPCAST) + x_o.to(tl.float32)
        c = f * c + i * z
        if HALF:
            h_wide = approximate_sigmoid(o_pre, FAST) * approximate_tanh(c, FAST)
        else:
            h_wide = sigmoid(o_pre, FAST) * tanh(c, FAST)
        h_now = h_wide.to(recurrent.dtype.element_ty)
        tl.store(out + tl.cast(t, tl.int64) * (H * K), h_now, mask=inside)
        if keep is not None:
            kept = tl.load(keep + row * (T + 1) + t + 1, mask=row < B, other=0.0)[:, None]
            h_now = tl.where(kept != 0.0, h_wide, 0.0).to(recurrent.dtype.element_ty)
            c = tl.where(kept != 0.0, c, 0.0)
    tl.store(h_last + state, h_now.to(tl.float32), mask=inside)
    tl.store(c_last + state, c, mask=inside)


@triton.jit(do_not_specialize=["T"])
def cells_kernel(
    pre, c0, keep, cells, T, D, offset, BD: tl.constexpr, STAGES: tl.constexpr, FAST: tl.constexpr
):  # fmt: skip
    """cells [B, T, D] fp32: k_t c_{t-1}, what a step starts from. D = H K."""
    blocks = tl.cdiv(D, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    inside = column < D
    c = tl.zeros([BD], tl.float32)
    if c0 is not None:
        c = tl.load(c0 + row * D + column, mask=inside, other=0.0)
    for t in tl.range(0, T, num_stages=STAGES):
        if keep is not None:
            c = tl.where(tl.load(keep + row * (T + 1) + t) != 0.0, c, 0.0)
        step = row * T + t
        tl.store(cells + step * D + column, c, mask=inside)
        at = pre + step * (4 * D) + column
        i = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        f = tl.load(at + D, mask=inside, other=0.0).to(tl.float32)
        z = tl.load(at + 2 * D, mask=inside, other=0.0).to(tl.float32)
        c = sigmoid(f + offset, FAST) * c + sigmoid(i, FAST) * tanh(z, FAST)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    pre, cells, recurrent, keep, dh, dh_last, dc_last, dgates, dh0, dc0, T, B, H, R, K, dh_row, dh_step, dh_head,
    offset, W: tl.constexpr, BB: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr, FAST: tl.constexpr,
    HALF: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Walks back from the pre-activations and cells. dh_last, dc_last and keep may be None."""
    head = tl.program_id(0)
    row = tl.program_id(1) * BB + tl.arange(0, BB)
    k = tl.arange(0, W)
    inside = (row < B)[:, None]
    if not EVEN:
        inside = inside & (k < K)[None, :]
    term, gate = tl.arange(0, 4 * W) % W, tl.arange(0, 4 * W) // W
    if HALF:  # the four matrices transposed, below each other
        at_matrix = recurrent + ((gate * R + head % R) * K * K + term)[:, None] + (k * K)[None, :]
        matrix = tl.load(at_matrix, mask=(term < K)[:, None] & (k < K)[None, :], other=0.0)
    else:
        R_i, R_f, R_z, R_o = _matrices(recurrent, head, H, R, K, False, W, EVEN)
    state = row[:, None] * (H * K) + head * K + k[None, :]
    dh_now = tl.zeros([BB, W], tl.float32)
    dc = tl.zeros([BB, W], tl.float32)
    if dh_last is not None:
        dh_now = tl.load(dh_last + state, mask=inside, other=0.0)
    if dc_last is not None:
        dc = tl.load(dc_last + state, mask=inside, other=0.0)
    first = row[:, None].to(tl.int64) * T * (H * K) + head * K + k[None, :]
    first_gate = row[:, None].to(tl.int64) * T * (4 * H * K) + head * K
    at_da = dgates + first_gate + (gate * (H * K) + term)[None, :]
    first_gate += k[None, :]
    arriving = dh + row[:, None].to(tl.int64) * dh_row + head * dh_head + k[None, :]
    for back in tl.range(0, T, num_stages=STAGES):
        t = tl.cast(T - 1 - back, tl.int64)
        at = first_gate + t * (4 * H * K)
        i = sigmoid(tl.load(pre + at, mask=inside, other=0.0).to(tl.float32), FAST)
        f = sigmoid(tl.load(pre + at + H * K, mask=inside, other=0.0).to(tl.float32) + offset, FAST)
        z = tanh(tl.load(pre + at + 2 * H * K, mask=inside, other=0.0).to(tl.float32), FAST)
        o = sigmoid(tl.load(pre + at + 3 * H * K, mask=inside, other=0.0).to(tl.float32), FAST)
        c_before = tl.load(cells + first + t * (H * K), mask=inside, other=0.0)
        dh_now += tl.load(arriving + t * dh_step, mask=inside, other=0.0).to(tl.float32)
        tanh_c = tanh(f * c_before + i * z, FAST)
        through = dh_now * o  # not times 1 - tanh(c)^2: Triton 3.6 makes that in another layout, for four more barriers
        dc += through - through * tanh_c * tanh_c
        da_i, da_f, da_z = dc * z * i * (1.0 - i), dc * c_before * f * (1.0 - f), dc * i * (1.0 - z * z)
        da_o = dh_now * tanh_c * o * (1.0 - o)
        dc = dc * f
        if (
            HALF
        ):  # [BB, 2, 2, W] -> [BB, 4 W]: the gates cross the warps together, once for memory, once for the product
            da = tl.permute(tl.join(tl.join(da_i, da_z), tl.join(da_f, da_o)), (0, 2, 3, 1))
            da = tl.reshape(da, [BB, 4 * W]).to(recurrent.dtype.element_ty)
            tl.store(at_da + t * (4 * H * K), da, mask=(row < B)[:, None] & (term < K)[None, :])
            dh_now = product(da, matrix, UPCAST)
        else:  # LLVM of Triton 3.9 fails on the long product
            tl.store(dgates + at, da_i, mask=inside)
            tl.store(dgates + at + H * K, da_f, mask=inside)
            tl.store(dgates + at + 2 * H * K, da_z, mask=inside)
            tl.store(dgates + at + 3 * H * K, da_o, mask=inside)
            dh_now = (product(da_i, R_i, UPCAST) + product(da_f, R_f, UPCAST)) + (
                product(da_z, R_z, UPCAST) + product(da_o, R_o, UPCAST)
            )
        if keep is not None:
            kept = tl.load(keep + row * (T + 1) + t, mask=row < B, other=0.0)[:, None]
            dh_now = tl.where(kept != 0.0, dh_now, 0.0)
            dc = tl.where(kept != 0.0, dc, 0.0)
    tl.store(dh0 + state, dh_now, mask=inside)
    tl.store(dc0 + state, dc, mask=inside)


def _keep(resets: Tensor | None) -> Tensor | None:
    """[B, T + 1] fp32: 0 where a document starts; nothing starts after the last step."""
    return None if resets is None else torch.nn.functional.pad((~resets).float(), (0, 1), value=1.0)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def kept(B: int, T: int, H: int, K: int) -> Shapes:
    """Nothing: h and the inputs are enough."""
    return (0,), (0,)


def forward(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gates, matrix = _rows(gates), recurrent.to(gates.dtype).contiguous()
    B, T, _, H, K = gates.shape
    W = max(16, power_of_2(K))
    h0, c0 = _contiguous(h0, c0)
    h = gates.new_empty(B, T, H, K)
    h_last, c_last = (gates.new_empty(B, H, K, dtype=torch.float32) for _ in range(2))
    forward_kernel[(H, triton.cdiv(B, ROWS))](
        gates, matrix, h0, c0, _keep(resets), h, h_last, c_last, T, B, H, matrix.shape[1], K, *gates.stride()[:4],
        forget_offset, W=W, BB=ROWS, STAGES=STAGES, EVEN=K == W, FAST=not interpreting(),
        HALF=gates.dtype != torch.float32, UPCAST=interpreting(), num_warps=warps(W),
    )  # fmt: skip
    return h, h_last, c_last, c_last.new_empty(0), c_last.new_empty(0)


def backward(
    dh: Tensor,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    h: Tensor,
    first: Tensor,
    second: Tensor,
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    dbias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gates, dh, matrix = _rows(gates), _rows(dh), recurrent.to(gates.dtype).contiguous()
    B, T, _, H, K = gates.shape
    R, W, keep = matrix.shape[1], max(16, power_of_2(K)), _keep(resets)
    h0 = None if h0 is None else h0.to(h.dtype)
    h0, c0, dh_last, dc_last = _contiguous(h0, c0, dh_last, dc_last)
    pre = gates.new_empty(B, T, 4, H, K)
    cells = gates.new_empty(B, T, H, K, dtype=torch.float32)
    dgates = gates.new_empty(B, T, 4, H, K)
    dh0, dc0 = (cells.new_empty(B, H, K) for _ in range(2))
    preactivations(gates, matrix, h0, keep, h, pre)
    cells_kernel[(B * triton.cdiv(H * K, COLUMNS),)](
        pre, c0, keep, cells, T, H * K, forget_offset, BD=COLUMNS, STAGES=STAGES, FAST=not interpreting(), num_warps=1
    )
    backward_kernel[(H, triton.cdiv(B, ROWS))](
        pre, cells, matrix, keep, dh, dh_last, dc_last, dgates, dh0, dc0, T, B, H, R, K, *dh.stride()[:3],
        forget_offset, W=W, BB=ROWS, STAGES=STAGES, EVEN=K == W, FAST=not interpreting(),
        HALF=gates.dtype != torch.float32, UPCAST=interpreting(), num_warps=warps(W),
    )  # fmt: skip
    return dgates, recurrent_gradient(h, h0, keep, dgates, recurrent, dbias), dh0, dc0


FORM = Form(forward, backward, kept, needs_gates=True)
