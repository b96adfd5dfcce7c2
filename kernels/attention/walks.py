# mypy: disable-error-code="assignment"
"""What the Triton kernels of attention share: loads of rows, scores, masks, and how far a tile looks.

Letters: M queries and N keys of a block, K head width, KP the power of two that holds it. Importing this needs Triton.
"""

import triton
import triton.language as tl
from triton.tools.ragged_tma import load_ragged

from hotplate.kernels.activations import tanh


@triton.jit
def span(edges, document):
    """Start (int64, addresses pass 2^31) and length of a document."""
    start = tl.load(edges + document)
    return start.to(tl.int64), tl.load(edges + document + 1) - start


@triton.jit
def owned_keys(tiles, tile, edges, document, N: tl.constexpr, AGAIN: tl.constexpr):
    """Where the keys of a tile of `keys` start, how long their document is, which of its keys is the tile's first.

    Deepest tiles come first, so the list is mirrored within its document. AGAIN: from memory, not from registers.
    """
    start = tl.load(edges + document, volatile=AGAIN)
    length = tl.load(edges + document + 1, volatile=AGAIN) - start
    low = (tl.cdiv(length, N) - 1 - tl.load(tiles + 2 * tile + 1, volatile=AGAIN)) * N
    return start.to(tl.int64), length, low


@triton.jit
def load_rows(x, row, column, stride, left, R: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
              DESCRIBED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """[R, KP] from `row`, `column`. x is a ragged descriptor or a pointer; `left` rows are the document's.

    Rows behind the document are 0: another's may hold what is no number, which a weight of 0 would not stop.
    """
    rows, features = tl.arange(0, R), tl.arange(0, KP)
    if DESCRIBED:
        block = load_ragged(x, row.to(tl.int32), left, [0, column.to(tl.int32)])
    else:
        at = x + row * stride + column + (rows[:, None] * stride + features[None, :])
        if MASKED:
            block = tl.load(at, mask=(rows < left)[:, None] & (features < K)[None, :], other=0.0)
        elif KP != K:
            block = tl.load(at, mask=(features < K)[None, :], other=0.0)
        else:
            block = tl.load(at)
    return block


@triton.jit
def store_rows(x, block, row, column, stride, left, R: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    """Rows are counted from R on: the numbers of those loaded would stay in registers, or spill, until here."""
    rows, features = tl.arange(R, 2 * R), tl.arange(0, KP)
    at = x + (row - R) * stride + column + (rows[:, None] * stride + features[None, :])
    tl.store(at, block.to(x.dtype.element_ty), mask=(rows < left + R)[:, None] & (features < K)[None, :])


@triton.jit
def store_sum(parts, total, head, K: tl.constexpr, KP: tl.constexpr):
    """Row `head` of parts [., K]: total [KP]."""
    features = tl.arange(0, KP)
    tl.store(parts + head.to(tl.int64) * K + features, total, mask=features < K)


@triton.jit
def power(x, FP32: tl.constexpr):
    """exp(x) in fp32, where scores keep their unit and so their rounding; 2^x in 16 bits, one instruction less."""
    return tl.exp(x) if FP32 else tl.exp2(x)


@triton.jit
def bent(s, squeeze, FAST: tl.constexpr):
    """tanh of the products s; the soft-capped score is softcap times it."""
    return tanh(s * squeeze, FAST)


@triton.jit
def hidden(s, position, key, window, WINDOW: tl.constexpr):
    """s where the key is not later than the position and within the window, else -inf; the shapes broadcast."""
    seen = key <= position
    if WINDOW:
        seen = seen & (key > position - window)
    return tl.where(seen, s, float("-inf"))


@triton.jit
def keys_of(low, high, N: tl.constexpr, M: tl.constexpr, window, WINDOW: tl.constexpr):
    """Four bounds for the queries at positions low to high - 1, the last tile's end aside: keys are masked from the
    first to the second, all seen from the second to the third, masked to the fourth. Blocks start at multiples of N.
    """
    first, begin = 0, 0
    full = (low + 1) // N * N
    if WINDOW:
        first = tl.maximum(low - window + 1, 0) // N * N
        begin = tl.minimum(tl.cdiv(tl.maximum(low + M - window, 0), N) * N, full)
        begin = tl.maximum(begin, first)
    return first, begin, full, high


@triton.jit
def queries_of(low, offset, Lq, N: tl.constexpr, M: tl.constexpr, window, WINDOW: tl.constexpr):
    """The same for the keys low to low + N - 1: queries that see some, all, some of them. Blocks of M."""
    first = tl.maximum(low - offset, 0) // M * M
    begin = tl.cdiv(tl.maximum(low + N - 1 - offset, 0), M) * M
    last = Lq
    full = Lq
    if WINDOW:
        last = tl.minimum(Lq, tl.maximum(low + N - 1 + window - offset, 0))
        full = tl.maximum(low + window - offset, 0) // M * M
    begin = tl.minimum(begin, tl.cdiv(last, M) * M)
    full = tl.minimum(tl.maximum(full, begin), last)
    return first, begin, full, last
