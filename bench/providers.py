"""Turns an operation into the two things a benchmark times: its forward, and its forward with backward."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotplate.bench.harness import Provider

Op = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Operands:
    """Arguments of an operation (requires_grad marks those with a gradient) and the gradient of each result."""

    arguments: Sequence[Tensor]
    upstream: Tensor | Sequence[Tensor]


def _listed(tensors: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _differentiated(op: Op, operands: Operands, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
    results = _listed(op(*arguments))
    leaves = [x for x in arguments if x.requires_grad]
    arriving = [g.to(y.dtype) for g, y in zip(_listed(operands.upstream), results, strict=True)]
    return [*results, *torch.autograd.grad(results, leaves, arriving)]


def forward(op: Op) -> Provider:
    """The results, without a graph."""

    def provider(operands: Operands) -> Sequence[Tensor]:
        with torch.no_grad():
            return _listed(op(*operands.arguments))

    return provider


def both(op: Op) -> Provider:
    """The results and the gradient of every argument that has one."""
    return lambda operands: _differentiated(op, operands, operands.arguments)


def in_float64(op: Op, backward: bool) -> Provider:
    """The truth: `op` on the same numbers in float64."""

    def truth(operands: Operands) -> Sequence[Tensor]:
        wide = [
            x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
            for x in operands.arguments
        ]
        if backward:
            return _differentiated(op, operands, wide)
        with torch.no_grad():
            return _listed(op(*wide))

    return truth


def imported(module: str) -> Any | None:
    """A peer's module where it is installed: it is compared with, never needed."""
    return importlib.import_module(module) if importlib.util.find_spec(module.split(".")[0]) is not None else None
