"""Newton-Schulz in Triton: the three products of a step, of which two have symmetric results: half of them is computed.

Letters: M rows and N columns of a matrix, S and L its shorter and longer side, B tile of both, K sum of a product, BK
step of it. S and L are padded to whole tiles; rows and columns of zeros stay zeros through all steps, so that no
product needs a mask and all its loads are wide. Importing this needs Triton.
"""

import triton
import triton.language as tl


@triton.jit
def corner(t, n):
    """Row and column of the t-th of the tiles on and above the diagonal of n x n. Rows come in pairs of one length: the
    longest beside the shortest, or where n is odd beside none."""
    odd = n % 2
    width = n + 1 - odd
    upper, place = t // width, t % width
    length = n - upper
    i = tl.where(place < length, upper, n - 1 + odd - upper)
    return i, i + tl.where(place < length, place, place - length)


@triton.jit
def scale_kernel(g, norms, x, M, N, S, L, TALL: tl.constexpr, B: tl.constexpr):
    """x [., S, L] = g / norm from g [., M, N], transposed where that is TALL; zeros in the padding."""
    tiles = (S // B) * (L // B)
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    place = tl.program_id(0) % tiles
    short, long = place // (L // B) * B + tl.arange(0, B), place % (L // B) * B + tl.arange(0, B)
    if TALL:
        at, inside = long.to(tl.int64)[:, None] * N + short[None, :], (long < M)[:, None] & (short < N)[None, :]
    else:
        at, inside = short.to(tl.int64)[:, None] * N + long[None, :], (short < M)[:, None] & (long < N)[None, :]
    value = tl.load(g + matrix * M * N + at, mask=inside, other=0.0).to(tl.float32) / tl.load(norms + matrix)
    made = value.to(x.dtype.element_ty)
    if TALL:
        made = tl.trans(made)
    tl.store(x + matrix * S * L + short.to(tl.int64)[:, None] * L + long[None, :], made)


@triton.jit
def symmetric_kernel(
    x, out, S, K, b: tl.constexpr, c: tl.constexpr, ADD: tl.constexpr, B: tl.constexpr, BK: tl.constexpr
):
    """out [., S, S] = c x x^T of x [., S, K]; with ADD c (b x + x x^T) of x [., S, S], which is symmetric.

    A tile beside the diagonal is stored on both sides of it.
    """
    n = S // B
    tiles = n * (n + 1) // 2
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    i, j = corner(tl.program_id(0) % tiles, n)
    row, column = i.to(tl.int64) * B, j.to(tl.int64) * B
    within, k = tl.arange(0, B), tl.arange(0, BK)
    x += matrix * S * K
    out += matrix * S * S
    total = tl.zeros([B, B], tl.float32)
    if ADD:
        total += b * tl.load(x + row * S + column + within[:, None] * S + within[None, :]).to(tl.float32)
    left = x + row * K + within[:, None] * K + k[None, :]
    right = x + column * K + within[:, None] * K + k[None, :]
    for _ in range(0, K, BK):
        total = tl.dot(tl.load(left), tl.trans(tl.load(right)), total)
        left += BK
        right += BK
    made = (c * total).to(out.dtype.element_ty)
    at = within[:, None] * S + within[None, :]
    tl.store(out + row * S + column + at, made)
    if i != j:
        tl.store(out + column * S + row + at, tl.trans(made))


@triton.jit
def update_kernel(
    p, x, out, S, L, M, N, a: tl.constexpr, LAST: tl.constexpr, TALL: tl.constexpr, B: tl.constexpr, BK: tl.constexpr
):
    """out = a x + p x from p [., S, S] and x [., S, L]: like x, or of the LAST step [., M, N] without padding,
    transposed where that is TALL."""
    tiles = (S // B) * (L // B)
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    place = tl.program_id(0) % tiles
    row, column = (place % (S // B)).to(tl.int64) * B, (place // (S // B)).to(tl.int64) * B
    within, k = tl.arange(0, B), tl.arange(0, BK)
    p += matrix * S * S
    x += matrix * S * L
    at = row * L + column + within[:, None] * L + within[None, :]
    total = a * tl.load(x + at).to(tl.float32)
    left = p + row * S + within[:, None] * S + k[None, :]
    right = x + column + k[:, None] * L + within[None, :]
    for _ in range(0, S, BK):
        total = tl.dot(tl.load(left), tl.load(right), total)
        left += BK
        right += BK * L
    made = total.to(out.dtype.element_ty)
    if LAST:
        short, long = row + within, column + within
        out += matrix * M * N
        if TALL:
            inside = (long < M)[:, None] & (short < N)[None, :]
            tl.store(out + long[:, None] * N + short[None, :], tl.trans(made), mask=inside)
        else:
            tl.store(out + short[:, None] * N + long[None, :], made, mask=(short < M)[:, None] & (long < N)[None, :])
    else:
        tl.store(out + matrix * S * L + at, made)
