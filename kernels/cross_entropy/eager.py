"""Output projection and loss by chunks of rows; the gradient is made while the logits are at hand.

Letters: N targets, D width, V vocabulary, C rows of a chunk.
A chunk's logits are the only tensor with a V beside the weight, its gradient and their wide forms. They become
exponentials and then their gradient in place, and every chunk uses the same memory.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hotplate.kernels.checks import state_dtype


class _Products:
    """x W^T and its two transposes with sums in the wide dtype.

    A GPU multiplies 16-bit operands and sums in fp32, which its matrix units do at full speed. A CPU would
    round the result to 16 bits, so there the operands are widened instead, the weight once for all chunks.
    """

    def __init__(self, weight: Tensor):
        self.wide = state_dtype(weight.dtype)
        self.mixed = weight.device.type != "cpu" and weight.dtype != self.wide
        self.operand = weight.dtype if self.mixed else self.wide
        self.weight = weight.detach().to(self.operand)

    def _mm(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        if self.mixed:
            return torch.mm(left.to(self.operand), right.to(self.operand), out_dtype=self.wide, out=out)
        return torch.mm(left, right, out=out)

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        return self._mm(x, self.weight.T, out)

    def dx(self, dlogits: Tensor, out: Tensor) -> Tensor:
        return self._mm(dlogits, self.weight, out)

    def add_dweight(self, total: Tensor, dlogits: Tensor, x: Tensor) -> None:
        if self.mixed:
            total += self._mm(dlogits.T, x)
        else:
            total.addmm_(dlogits.T, x)


def _chunk_rows(N: int, V: int, dtype: torch.dtype, chunk_bytes: int) -> int:
    return max(1, min(N, chunk_bytes // (V * dtype.itemsize)))


def _chunks(N: int, rows: int) -> Iterator[slice]:
    return (slice(first, min(first + rows, N)) for first in range(0, N, rows))


def _forward(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    logit_scale: float,
    chunk_bytes: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """loss_sum, and dx [N, D] and dweight [V, D] of it in the wide dtype where `needs` asks for them."""
    products = _Products(weight)
    wide, N, V = products.wide, x.shape[0], weight.shape[0]
    nll = x.new_empty(N, dtype=wide)
    dx = torch.empty_like(x, dtype=wide, memory_format=torch.contiguous_format) if needs[0] else None
    dweight = torch.zeros_like(weight, dtype=wide, memory_format=torch.contiguous_format) if needs[1] else None
    C = _chunk_rows(N, V, wide, chunk_bytes)
    buffer = x.new_empty(C, V, dtype=wide)
    for rows in _chunks(N, C):
        size = rows.stop - rows.start
        target = targets[rows, None]
        x_rows = x[rows].detach().to(products.operand)
        row_weights = None if weights is None else weights[rows, None].to(wide)
        if row_weights is not None:
            x_rows = x_rows.masked_fill(row_weights == 0, 0)  # 0 * nan is nan: an unscored row is not looked at
        logits = products.logits(x_rows, buffer[:size])
        if logit_scale != 1:
            logits *= logit_scale
        top = logits.amax(1, keepdim=True)
        below_top = top - logits.gather(1, target)
        total = logits.sub_(top).exp_().sum(1, keepdim=True)
        torch.add(below_top, total.log(), out=nll[rows, None])
        if dx is None and dweight is None:
            continue
        factor = logit_scale / total if row_weights is None else row_weights * logit_scale / total
        dlogits = logits.mul_(factor)
        dlogits.scatter_add_(1, target, -(factor * total))
        if dx is not None:
            products.dx(dlogits, dx[rows])
        if dweight is not None:
            products.add_dweight(dweight, dlogits, x_rows)
    return (nll if weights is None else nll.mul_(weights)).sum(), dx, dweight


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        logit_scale: float,
        chunk_bytes: int,
    ) -> Tensor:
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        loss_sum, dx, dweight = _forward(x, weight, targets, weights, logit_scale, chunk_bytes, needs)
        ctx.save_for_backward(dx, dweight)
        ctx.dtypes = x.dtype, weight.dtype
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        dx, dweight = (
            None if d is None else torch.mul(d, upstream).to(dtype)
            for d, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return dx, dweight, None, None, None, None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, logit_scale: float, chunk_bytes: int
) -> Tensor:
    """See op.py."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return LinearCrossEntropy.apply(x, weight, targets, weights, logit_scale, chunk_bytes)
    return _forward(x, weight, targets, weights, logit_scale, chunk_bytes, (False, False))[0]


def linear_scores(
    x: Tensor, weight: Tensor, targets: Tensor, logit_scale: float, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """See op.py."""
    products = _Products(weight)
    N, V = x.shape[0], weight.shape[0]
    nll, rank = x.new_empty(N, dtype=products.wide), targets.new_empty(N)
    C = _chunk_rows(N, V, products.wide, chunk_bytes)
    buffer = x.new_empty(C, V, dtype=products.wide)
    for rows in _chunks(N, C):
        logits = products.logits(x[rows].to(products.operand), buffer[: rows.stop - rows.start]).mul_(logit_scale)
        of_target = logits.gather(1, targets[rows, None])
        nll[rows] = torch.logsumexp(logits, 1) - of_target[:, 0]
        rank[rows] = (logits > of_target).sum(1)
    return nll, rank
