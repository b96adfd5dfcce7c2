# mypy: disable-error-code="assignment"
"""Causal attention over packed documents, backward, as two kernels without atomics: runs repeat bitwise.

queries: a program owns queries and walks over keys. keys: a program owns keys of one key head and walks over the
queries of all heads that read it. Letters: M queries and N keys of a block, K head width, KP the power of two that
holds it, H query heads. Importing this needs Triton.
"""

import triton
import triton.language as tl

from hotplate.kernels.attention.walks import (
    bent,
    hidden,
    keys_of,
    load_rows,
    owned_keys,
    power,
    queries_of,
    span,
    store_rows,
    store_sum,
)


@triton.jit
def load_pairs(pairs, row, left, R: tl.constexpr):
    """lse in the unit of scores, inf after the document, and delta, of R positions.

    One load for both: alone, each would be of fewer elements than a program has lanes, and Triton 3.6 would copy every
    element once per lane that needs it.
    """
    rows = tl.arange(0, R)
    at = pairs + 2 * row + (2 * rows[:, None] + tl.arange(0, 2)[None, :])
    lse, delta = tl.split(tl.load(at, mask=(rows < left)[:, None], other=0.0))
    return tl.where(rows < left, lse, float("inf")), delta


@triton.jit
def gather_keys(
    dk_acc, dv_acc, k_block, v_block, key, offset, q, dout, pairs, first, last, row, Lq, heads, positions,
    q_row, q_head, dout_row, dout_head, unit, bend, squeeze, window,
    GROUP: tl.constexpr, M: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, DESCRIBED: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Takes the queries from `first` to `last` of GROUP heads from `heads` on into dk / scale and dv.

    One loop over blocks and heads: within a loop over heads, the sums spilled. Scores are transposed: p feeds a product
    from registers. lse = inf gives the rows after the document no weight.
    """
    EARLY: tl.constexpr = KP >= 16 * M  # dp before the scores, or sums of 256 features on sm_90 spill within the loop
    for step in tl.range(0, tl.cdiv(last - first, M) * GROUP):
        query, head = first + step // GROUP * M, (heads + step % GROUP).to(tl.int64)
        rows = query + tl.arange(0, M)
        q_block = load_rows(q, row + query, head * q_head, q_row, Lq - query, M, K, KP, DESCRIBED, True)
        if EARLY:
            d_block = load_rows(dout, row + query, head * dout_head, dout_row, Lq - query, M, K, KP, DESCRIBED, True)
            dp = tl.dot(v_block, tl.trans(d_block), input_precision=PRECISION)
        lse_row, delta_row = load_pairs(pairs + 2 * head * positions, row + query, Lq - query, M)
        s = tl.dot(k_block, tl.trans(q_block), input_precision=PRECISION)
        if SOFTCAP:
            curve = bent(s, squeeze, FAST)
            s = bend * curve
        if MASKED:
            s = hidden(s, (rows + offset)[None, :], key[:, None], window, WINDOW)
        p = power(s * unit - lse_row[None, :], PRECISION == "ieee")
        if not EARLY:
            d_block = load_rows(dout, row + query, head * dout_head, dout_row, Lq - query, M, K, KP, DESCRIBED, True)
        weight = p.to(d_block.dtype)
        if SOFTCAP:
            p = p * (1.0 - curve * curve)
        dv_acc = tl.dot(weight, d_block, dv_acc, input_precision=PRECISION)
        if not EARLY:
            dp = tl.dot(v_block, tl.trans(d_block), input_precision=PRECISION)
        ds = p * (dp - delta_row[None, :])
        dk_acc = tl.dot(ds.to(q_block.dtype), q_block, dk_acc, input_precision=PRECISION)
    return dk_acc, dv_acc


@triton.jit
def keys_kernel(
    q, k, v, dout, dk, dv, pairs, edges_q, edges_k, tiles, positions, Hkv,
    q_row, q_head, k_row, k_head, v_row, v_head, dout_row, dout_head, result_row, scale, unit, bend, squeeze, window,
    parts,
    GROUP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    DESCRIBED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """dk and dv [keys, Hkv, K], rows result_row apart. q, k, v and dout are descriptors where DESCRIBED. parts [tiles,
    2, Hkv, K], sums of dk and dv over a tile's rows, may be None."""
    tile, group = tl.program_id(0) // Hkv, tl.program_id(0) % Hkv
    document = tl.load(tiles + 2 * tile)
    if document >= 0:
        start_q, Lq = span(edges_q, document)
        start_k, Lk, low = owned_keys(tiles, tile, edges_k, document, N, False)
        left, row_k, wide = Lk - low, start_k + low, group.to(tl.int64)
        key, offset = low + tl.arange(0, N), Lk - Lq
        k_block = load_rows(k, row_k, wide * k_head, k_row, left, N, K, KP, DESCRIBED, True)
        v_block = load_rows(v, row_k, wide * v_head, v_row, left, N, K, KP, DESCRIBED, True)
        dk_acc, dv_acc = tl.zeros([N, KP], tl.float32), tl.zeros([N, KP], tl.float32)
        first, begin, full, last = queries_of(low, offset, Lq, N, M, window, WINDOW)
        heads = group * GROUP
        # Sums of many features with masks or a soft cap: one loop, as what a second keeps would spill.
        WHOLE: tl.constexpr = KP >= 16 * M or (SOFTCAP and KP >= 128)
        masked = last if WHOLE else begin
        dk_acc, dv_acc = gather_keys(
            dk_acc, dv_acc, k_block, v_block, key, offset, q, dout, pairs, first, masked, start_q, Lq, heads,
            positions, q_row, q_head, dout_row, dout_head, unit, bend, squeeze, window,
            GROUP, M, K, KP, DESCRIBED, WINDOW, SOFTCAP, True, PRECISION, FAST,
        )  # fmt: skip
        if not WHOLE:
            dk_acc, dv_acc = gather_keys(
                dk_acc, dv_acc, k_block, v_block, key, offset, q, dout, pairs, begin, full, start_q, Lq, heads,
                positions, q_row, q_head, dout_row, dout_head, unit, bend, squeeze, window,
                GROUP, M, K, KP, DESCRIBED, WINDOW, SOFTCAP, False, PRECISION, FAST,
            )  # fmt: skip
            if WINDOW:
                dk_acc, dv_acc = gather_keys(
                    dk_acc, dv_acc, k_block, v_block, key, offset, q, dout, pairs, full, last, start_q, Lq, heads,
                    positions, q_row, q_head, dout_row, dout_head, unit, bend, squeeze, window,
                    GROUP, M, K, KP, DESCRIBED, WINDOW, SOFTCAP, True, PRECISION, FAST,
                )  # fmt: skip
        start_k, Lk, low = owned_keys(tiles, tile, edges_k, tl.load(tiles + 2 * tile, volatile=True), N, True)
        left, row_k = Lk - low, start_k + low
        store_rows(dk, dk_acc * scale, row_k, group * K, result_row, left, N, K, KP)
        store_rows(dv, dv_acc, row_k, group * K, result_row, left, N, K, KP)
        if parts is not None:
            store_sum(parts, tl.sum(dk_acc, 0) * scale, tile * 2 * Hkv + group, K, KP)
            store_sum(parts, tl.sum(dv_acc, 0), tile * 2 * Hkv + Hkv + group, K, KP)
    elif parts is not None:
        store_sum(parts, tl.zeros([KP], tl.float32), tile * 2 * Hkv + group, K, KP)
        store_sum(parts, tl.zeros([KP], tl.float32), tile * 2 * Hkv + Hkv + group, K, KP)


@triton.jit
def gather_queries(
    acc, q_block, d_block, lse_row, delta_row, position, k, v, first, last, row, Lk,
    column_k, column_v, k_row, v_row, unit, bend, squeeze, window,
    N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, DESCRIBED: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr, SUMMING: tl.constexpr,
):  # fmt: skip
    """Takes the keys from `first` to `last` into dq / scale, or where SUMMING into rowsum(p dp)."""
    for key in tl.range(first, last, N):
        k_block = load_rows(k, row + key, column_k, k_row, Lk - key, N, K, KP, DESCRIBED, MASKED)
        v_block = load_rows(v, row + key, column_v, v_row, Lk - key, N, K, KP, DESCRIBED, MASKED)
        s = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION)
        if SOFTCAP:
            curve = bent(s, squeeze, FAST)
            s = bend * curve
        if MASKED:
            s = hidden(s, position[:, None], (key + tl.arange(0, N))[None, :], window, WINDOW)
        p = power(s * unit - lse_row[:, None], PRECISION == "ieee")
        dp = tl.dot(d_block, tl.trans(v_block), input_precision=PRECISION)
        if SUMMING:
            acc += tl.sum(p * dp, 1)
        else:
            ds = p * (dp - delta_row[:, None])
            if SOFTCAP:
                ds = ds * (1.0 - curve * curve)
            acc = tl.dot(ds.to(k_block.dtype), k_block, acc, input_precision=PRECISION)
    return acc


@triton.jit
def queries_kernel(
    q, k, v, dout, out, dq, lse, dlse, pairs, edges_q, edges_k, tiles, positions, H,
    q_row, q_head, k_row, k_head, v_row, v_head, dout_row, dout_head, result_row, scale, unit, bend, squeeze, window,
    parts,
    GROUP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    DESCRIBED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    FAST: tl.constexpr, SUMMING: tl.constexpr,
):  # fmt: skip
    """dq [positions, H, K], rows result_row apart, and pairs [H, positions, 2]: lse in powers of two and delta,
    rowsum(dout out) - dlse. Operands are as in forward_kernel. parts [tiles, H, K], sums of dq over a tile's rows, may
    be None.

    fp32 reads pairs of lse and rowsum(p dp) - dlse, which a launch before writes, SUMMING, and nothing else: that sum
    cancels against dp where one key has all the weight, and rowsum(dout out), of other products in another order, does
    not. dlse may be None.
    """
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    document = tl.load(tiles + 2 * tile)
    if document >= 0:
        block = tl.load(tiles + 2 * tile + 1)
        start_q, Lq = span(edges_q, document)
        start_k, Lk = span(edges_k, document)
        low, left, row, wide = block * M + Lk - Lq, Lq - block * M, start_q + block * M, head.to(tl.int64)
        rows = tl.arange(0, M)
        at, inside, high = wide * positions + row + rows, rows < left, low + tl.minimum(left, M)
        q_block = load_rows(q, row, wide * q_head, q_row, left, M, K, KP, DESCRIBED, True)
        d_block = load_rows(dout, row, wide * dout_head, dout_row, left, M, K, KP, DESCRIBED, True)
        if SUMMING:
            lse_row = tl.load(lse + at, mask=inside, other=float("inf"))
            delta_row = tl.zeros([M], tl.float32)
            acc = delta_row
        elif PRECISION == "ieee":
            lse_row, delta_row = load_pairs(pairs, wide * positions + row, left, M)
            acc = tl.zeros([M, KP], tl.float32)
        else:
            lse_row = 1.4426950408889634 * tl.load(lse + at, mask=inside, other=float("inf"))
            o_block = load_rows(out, row, wide * K, H * K, left, M, K, KP, False, True).to(tl.float32)
            delta_row = tl.sum(o_block * d_block.to(tl.float32), 1)
            if dlse is not None:
                delta_row -= tl.load(dlse + at, mask=inside, other=0.0)
            tl.store(pairs + 2 * at, lse_row, mask=inside)
            tl.store(pairs + 2 * at + 1, delta_row, mask=inside)
            acc = tl.zeros([M, KP], tl.float32)
        column_k, column_v = wide // GROUP * k_head, wide // GROUP * v_head
        first, begin, full, last = keys_of(low, high, N, M, window, WINDOW)
        if WINDOW:
            acc = gather_queries(
                acc, q_block, d_block, lse_row, delta_row, low + rows, k, v, first, begin, start_k, Lk,
                column_k, column_v, k_row, v_row, unit, bend, squeeze, window,
                N, K, KP, DESCRIBED, WINDOW, SOFTCAP, True, PRECISION, FAST, SUMMING,
            )  # fmt: skip
        acc = gather_queries(
            acc, q_block, d_block, lse_row, delta_row, low + rows, k, v, begin, full, start_k, Lk,
            column_k, column_v, k_row, v_row, unit, bend, squeeze, window,
            N, K, KP, DESCRIBED, WINDOW, SOFTCAP, False, PRECISION, FAST, SUMMING,
        )  # fmt: skip
        acc = gather_queries(
            acc, q_block, d_block, lse_row, delta_row, low + rows, k, v, full, last, start_k, Lk,
            column_k, column_v, k_row, v_row, unit, bend, squeeze, window,
            N, K, KP, DESCRIBED, WINDOW, SOFTCAP, True, PRECISION, FAST, SUMMING,
        )  # fmt: skip
        if SUMMING:
            rows = tl.arange(M, 2 * M)
            at, inside = wide * positions + row - M + rows, rows < left + M
            if dlse is not None:
                acc -= tl.load(dlse + at, mask=inside, other=0.0)
            tl.store(pairs + 2 * at, lse_row, mask=inside)
            tl.store(pairs + 2 * at + 1, acc, mask=inside)
        else:
            store_rows(dq, acc * scale, row, head * K, result_row, left, M, K, KP)
            if parts is not None:
                store_sum(parts, tl.sum(acc, 0) * scale, tile * H + head, K, KP)
    elif parts is not None:
        store_sum(parts, tl.zeros([KP], tl.float32), tile * H + head, K, KP)
