"""Arithmetic in which every sum is computed in float64 and rounded once to the dtype that its operation declares.

bf16 has 8 significant bits: products of two of them are exact in float64 and so, over sums of ordinary length and
range, are their sums. Results then do not depend on the order or the number of terms, which is what differs between a
model and its wider copy on kernels that add in float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NARROW = (torch.bfloat16, torch.float32)
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
SUMS = {"mm", "addmm", "bmm", "baddbmm", "sum", "mean", "native_layer_norm", ATTENTION}


class RoundedOnce(TorchDispatchMode):
    """Within it, torch's products and other sums of bf16 and float32 tensors round once; `seen` names those met."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        plain = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name not in SUMS:
            return plain
        self.seen.add(name)
        wide_args, wide_kwargs = tree_map(_widen, (args, kwargs))
        return tree_map(_round, func(*wide_args, **wide_kwargs), plain)


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype in NARROW else value


def _round(exact: Any, plain: Any) -> Any:
    return exact.to(plain.dtype) if isinstance(plain, Tensor) else exact
