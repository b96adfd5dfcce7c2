"""Turns an operation into the two things a benchmark times: its forward, and its forward with backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotplate.bench.harness import Provider

Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Operands:
    """Arguments of an operation (requires_grad marks those with a gradient) and the gradient that arrives."""

    arguments: Sequence[Tensor]
    upstream: Tensor


def _differentiated(op: Op, arguments: Sequence[Tensor], upstream: Tensor) -> Sequence[Tensor]:
    result = op(*arguments)
    leaves = [x for x in arguments if x.requires_grad]
    return [result, *torch.autograd.grad(result, leaves, upstream.to(result.dtype))]


def forward(op: Op) -> Provider:
    """[result], without a graph."""

    def provider(operands: Operands) -> Sequence[Tensor]:
        with torch.no_grad():
            return [op(*operands.arguments)]

    return provider


def both(op: Op) -> Provider:
    """[result, gradient of every argument that has one]."""
    return lambda operands: _differentiated(op, operands.arguments, operands.upstream)


def in_float64(op: Op, backward: bool) -> Provider:
    """The truth: `op` on the same numbers in float64."""

    def truth(operands: Operands) -> Sequence[Tensor]:
        wide = [
            x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
            for x in operands.arguments
        ]
        if backward:
            return _differentiated(op, wide, operands.upstream)
        with torch.no_grad():
            return [op(*wide)]

    return truth
