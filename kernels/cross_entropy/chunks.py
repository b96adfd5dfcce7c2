"""Output projection and loss by chunks of rows: the products around a form's work on the logits of a chunk.

Letters: N targets, D width, V vocabulary, C rows of a chunk.
A chunk's logits are the only tensor with N and V in it; every chunk uses the same memory.
"""

import importlib
from collections.abc import Iterator

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype
from hotplate.kernels.cross_entropy.reference import Loss
from hotplate.kernels.product import multiply, takes_halves

# A form is a module with `rows`; triton's is imported when it is asked for.
MODULES = {
    "eager": "hotplate.kernels.cross_entropy.eager",
    "native": "hotplate.kernels.cross_entropy.native",
    "triton": "hotplate.kernels.cross_entropy.streaming",
}
WHOLE_LINES = 16  # a GPU's logit rows start at multiples of so many values: odd vocabularies keep wide loads


class Products:
    """x W^T and its two transposes with sums in the wide dtype.

    A GPU multiplies 16-bit operands and sums in fp32, which its matrix units do at full speed, and so does the product
    in C on processors that can. Torch's on a CPU would round the result to 16 bits, so elsewhere the operands are
    widened instead, the weight once for all chunks.
    """

    def __init__(self, weight: Tensor):
        self.wide = state_dtype(weight.dtype)
        self.device = weight.device.type
        self.mixed = weight.dtype != self.wide and (self.device != "cpu" or takes_halves(weight.dtype))
        self.operand = weight.dtype if self.mixed else self.wide
        self.weight = weight.to(self.operand)

    def _mm(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        left, right = left.to(self.operand), right.to(self.operand)
        if self.mixed and self.device != "cpu":
            return torch.mm(left, right, out_dtype=self.wide, out=out)
        return multiply(left, right, left.new_empty(len(left), right.shape[1], dtype=self.wide) if out is None else out)

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        return self._mm(x, self.weight.T, out)

    def dx(self, dlogits: Tensor, out: Tensor) -> Tensor:
        return self._mm(dlogits, self.weight, out)

    def add_dweight(self, total: Tensor, dlogits: Tensor, x: Tensor, first: bool) -> None:
        if first:
            self._mm(dlogits.T, x, total)
        elif self.device == "cpu":
            multiply(dlogits.T.to(self.operand), x, total, add=True)
        elif self.mixed:  # not added within the product: torch 2.11 has no shapes for torch.addmm with out_dtype
            total += self._mm(dlogits.T, x)
        else:
            total.addmm_(dlogits.T, x)


def _buffer(products: Products, x: Tensor, V: int, chunk_bytes: int) -> Tensor:
    """[C, V] for the logits of a chunk."""
    C = max(1, min(x.shape[0], chunk_bytes // (V * products.wide.itemsize)))
    stride = V if x.device.type == "cpu" else -(-V // WHOLE_LINES) * WHOLE_LINES
    return x.new_empty(C, stride, dtype=products.wide)[:, :V]


def _chunks(N: int, rows: int) -> Iterator[slice]:
    return (slice(first, min(first + rows, N)) for first in range(0, N, rows))


def sweep(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    scored: Tensor,
    factors: Tensor | None,
    lse: Tensor | None,
    loss: Loss,
    chunk_bytes: int,
    impl: str,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """losses [N], lse [N], and dx [N, D] and dweight [V, D] in the wide dtype where `needs` asks for them, else empty.

    factors [N] (the wide dtype): what the gradient of each row's loss is multiplied by, 0 where not scored; needed
    where gradients are. lse: known from an earlier sweep, then losses are not computed.
    """
    products = Products(weight)
    rows_of, N, V = importlib.import_module(MODULES[impl]).rows, x.shape[0], weight.shape[0]
    losses, known = x.new_empty(N, dtype=products.wide), lse is not None
    lse = torch.empty_like(losses) if lse is None else lse.masked_fill(~scored, 0)
    dx = x.new_empty(x.shape if needs[0] else (0,), dtype=products.wide)
    dweight = weight.new_empty(weight.shape if needs[1] else (0,), dtype=products.wide)
    if not N:
        dweight.zero_()
    buffer = _buffer(products, x, V, chunk_bytes)
    for rows in _chunks(N, len(buffer)):
        # 0 * nan is nan: an unscored row is not looked at
        x_rows = x[rows].to(products.operand).masked_fill(~scored[rows, None], 0)
        logits = products.logits(x_rows, buffer[: len(x_rows)])
        factor = factors[rows] if factors is not None and any(needs) else None
        dlogits = rows_of(logits, targets[rows], factor, losses[rows], lse[rows], known, loss, products.operand)
        if needs[0]:
            products.dx(dlogits, dx[rows])
        if needs[1]:
            products.add_dweight(dweight, dlogits, x_rows, first=rows.start == 0)
    return losses.masked_fill_(~scored, 0), lse, dx, dweight


def linear_scores(x: Tensor, weight: Tensor, targets: Tensor, loss: Loss, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """See op.py."""
    products = Products(weight)
    N, V = x.shape[0], weight.shape[0]
    nll, rank = x.new_empty(N, dtype=products.wide), targets.new_empty(N)
    buffer = _buffer(products, x, V, chunk_bytes)
    for rows in _chunks(N, len(buffer)):
        logits = products.logits(x[rows].to(products.operand), buffer[: rows.stop - rows.start]).mul_(loss.scale)
        if loss.cap:
            logits.div_(loss.cap).tanh_().mul_(loss.cap)
        of_target = logits.gather(1, targets[rows, None])
        nll[rows] = torch.logsumexp(logits, 1) - of_target[:, 0]
        rank[rows] = logits.gt_(of_target).sum(1)  # in place: a mask summed as integers would be twice the chunk
    return nll, rank
