# mypy: disable-error-code="assignment"
"""Causal attention over packed documents, forward: one program per tile of queries and head.

Letters: M queries that a program owns, N keys of a step, K head width, KP the power of two that holds it, H heads.
Importing this needs Triton.
"""

import triton
import triton.language as tl

from hotplate.kernels.attention.walks import bent, hidden, keys_of, load_rows, power, span, store_rows


@triton.jit
def attend(
    acc, total, top, q_block, position, k, v, first, last, row, column_k, column_v, stride_k, stride_v, Lk,
    unit, bend, squeeze, window,
    N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, DESCRIBED: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Takes the keys from `first` to `last` into the running softmax: acc / total, with scores up to `top`."""
    for key in tl.range(first, last, N):
        k_block = load_rows(k, row + key, column_k, stride_k, Lk - key, N, K, KP, DESCRIBED, MASKED)
        s = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION)
        if SOFTCAP:
            s = bend * bent(s, squeeze, FAST)
        if MASKED:
            s = hidden(s, position[:, None], (key + tl.arange(0, N))[None, :], window, WINDOW)
        highest = tl.maximum(top, tl.max(s, 1) * unit)
        shift = highest
        if WINDOW:  # a row may have seen no key yet, and -inf - -inf is no number
            shift = tl.where(highest == float("-inf"), 0.0, highest)
        p = power(s * unit - shift[:, None], PRECISION == "ieee")
        keep = power(top - shift, PRECISION == "ieee")
        total = total * keep + tl.sum(p, 1)
        acc = acc * keep[:, None]
        v_block = load_rows(v, row + key, column_v, stride_v, Lk - key, N, K, KP, DESCRIBED, MASKED)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc, input_precision=PRECISION)
        top = highest
    return acc, total, top


@triton.jit
def forward_kernel(
    q, k, v, out, lse, edges_q, edges_k, tiles, positions, H,
    q_row, q_head, k_row, k_head, v_row, v_head, unit, bend, squeeze, window,
    GROUP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    DESCRIBED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """out [positions, H, K] and lse [H, positions]. q, k and v are descriptors where DESCRIBED.

    unit, bend, squeeze: see scores in README.md. Heads are the fastest: programs that run together share keys.
    """
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    document = tl.load(tiles + 2 * tile)
    if document >= 0:
        block = tl.load(tiles + 2 * tile + 1)
        start_q, Lq = span(edges_q, document)
        start_k, Lk = span(edges_k, document)
        low, left = block * M + Lk - Lq, Lq - block * M
        position = low + tl.arange(0, M)
        row = start_q + block * M
        q_block = load_rows(q, row, head.to(tl.int64) * q_head, q_row, left, M, K, KP, DESCRIBED, True)
        acc = tl.zeros([M, KP], tl.float32)
        total, top = tl.zeros([M], tl.float32), tl.full([M], float("-inf"), tl.float32)
        group = (head // GROUP).to(tl.int64)
        column_k, column_v = group * k_head, group * v_head
        first, begin, full, last = keys_of(low, low + tl.minimum(left, M), N, M, window, WINDOW)
        if WINDOW:
            acc, total, top = attend(
                acc, total, top, q_block, position, k, v, first, begin, start_k, column_k, column_v, k_row, v_row, Lk,
                unit, bend, squeeze, window, N, K, KP, DESCRIBED, WINDOW, SOFTCAP, True, PRECISION, FAST,
            )  # fmt: skip
        acc, total, top = attend(
            acc, total, top, q_block, position, k, v, begin, full, start_k, column_k, column_v, k_row, v_row, Lk,
            unit, bend, squeeze, window, N, K, KP, DESCRIBED, WINDOW, SOFTCAP, False, PRECISION, FAST,
        )  # fmt: skip
        acc, total, top = attend(
            acc, total, top, q_block, position, k, v, full, last, start_k, column_k, column_v, k_row, v_row, Lk,
            unit, bend, squeeze, window, N, K, KP, DESCRIBED, WINDOW, SOFTCAP, True, PRECISION, FAST,
        )  # fmt: skip
        inside = tl.arange(0, M) < left
        store_rows(out, acc / total[:, None], row, head * K, H * K, left, M, K, KP)
        log = top + tl.log(total) if PRECISION == "ieee" else 0.6931471805599453 * (top + tl.log2(total))
        tl.store(lse + head.to(tl.int64) * positions + row + tl.arange(0, M), log, mask=inside)
