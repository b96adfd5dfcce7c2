"""Newton-Schulz of torch's products, with the halves of symmetric ones alone on a CPU.

Letters: M rows and N columns, S and L the shorter and longer side.
"""

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype
from hotplate.kernels.newton_schulz.reference import COEFFICIENTS, NORM_FLOOR
from hotplate.kernels.product import multiply

BLOCK = 128  # rows of a symmetric product at a time: fewer are copied into panels too often, more compute too much
CHAIN = 256  # terms of a sum at a time: the steps magnify rounding, and in longer chains it passed twice torch's own
LEAST_SIDE = 2 * BLOCK  # from which blocks of rows were measured to be faster (README.md)


def work_dtype(g: Tensor) -> torch.dtype:
    """bfloat16 on a GPU, as Muon was published; elsewhere float32, or float64 for float64 inputs."""
    return torch.bfloat16 if g.device.type != "cpu" else state_dtype(g.dtype)


def norms(g: Tensor) -> Tensor:
    """[..., 1, 1] in float32 or wider, summed in float64: a sum of a million squares in float32 is off by 1e-5, which
    the steps do not mend."""
    norm = torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True, dtype=torch.float64)
    return (norm + NORM_FLOOR).to(state_dtype(g.dtype))


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """See op.py. The norm is taken in float32 or wider also where the products run in bfloat16."""
    M, N = g.shape[-2:]
    x = g.reshape(-1, M, N)
    x = (x.mT if M > N else x) / norms(x)
    x = x.to(work_dtype(g))
    walk = _by_blocks if g.device.type == "cpu" and min(M, N) >= LEAST_SIDE else _whole
    x = walk(x, steps)
    return (x.mT if M > N else x).reshape(g.shape).to(g.dtype)


def _whole(x: Tensor, steps: int) -> Tensor:
    """All matrices at once, in fused multiply-and-add products."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        A = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(A, A, A, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _by_blocks(x: Tensor, steps: int) -> Tensor:
    """Matrix by matrix; of a symmetric product each block of rows from the diagonal on, the rest mirrored."""
    a, b, c = COEFFICIENTS
    S, L = x.shape[-2:]
    out = x.new_empty(x.shape)
    A, polynomial, spare = x.new_empty(S, S), x.new_empty(S, S), x.new_empty(S, L)
    for matrix, found in zip(x, out, strict=True):
        found.copy_(matrix)
        old, new = found, spare
        for _ in range(steps):
            _square(old, A)
            _square(A, polynomial)
            polynomial.mul_(c).add_(A, alpha=b)
            _multiply(polynomial, old, new)
            new.add_(old, alpha=a)
            old, new = new, old
        if old is not found:
            found.copy_(old)
    return out


def _square(x: Tensor, out: Tensor) -> None:
    """out = x x^T."""
    for row in range(0, len(out), BLOCK):
        end = row + BLOCK
        _multiply(x[row:end], x[row:].mT, out[row:end, row:])
        out[end:, row:end] = out[row:end, end:].mT


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left right, CHAIN terms after CHAIN terms."""
    for start in range(0, left.shape[1], CHAIN):
        multiply(left[:, start : start + CHAIN], right[start : start + CHAIN], out, add=start > 0)
