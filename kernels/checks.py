"""Argument checks that every room words the same way: `<op>: want <contract>, got <facts>; <fix>`."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Impl = TypeVar("Impl", bound=Callable)

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that states, gates and sums are computed in: float32, or float64 for float64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def choose(op: str, impl: str, known: Mapping[str, Impl]) -> Impl:
    """The implementation called `impl`, for rooms whose only fast form is the eager one: `auto` is that.

    ValueError listing the known ones. Nothing falls back.
    """
    if impl != "auto" and impl not in known:
        raise ValueError(f"{op}: want impl in {sorted(['auto', *known])}, got {impl!r}; name one of these")
    return known["eager" if impl == "auto" else impl]


def want(op: str, holds: bool, contract: str, facts: str, fix: str) -> None:
    """Raises ValueError unless `holds`."""
    if not holds:
        raise ValueError(f"{op}: want {contract}, got {facts}; {fix}")


def want_float(op: str, name: str, tensor: Tensor) -> None:
    want(
        op,
        tensor.dtype in FLOATS,
        f"a floating {name}",
        str(tensor.dtype),
        "convert it to bfloat16 or float32",
    )


def want_state(op: str, name: str, state: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """A carried state is None (zeros) or [shape] in the state dtype, on the device of `like`."""
    if state is None:
        return
    dtype = state_dtype(like.dtype)
    want(
        op,
        tuple(state.shape) == shape and state.dtype == dtype and state.device == like.device,
        f"{name} None or {list(shape)} {dtype} on {like.device}",
        f"{list(state.shape)} {state.dtype} on {state.device}",
        "states are kept in the state dtype: use .to(torch.float32) (float64 with float64 gates)",
    )


def want_resets(op: str, resets: Tensor | None, shape: tuple[int, int], like: Tensor) -> None:
    """Resets are None (never) or bool [B, T] on the device of `like`."""
    if resets is None:
        return
    want(
        op,
        tuple(resets.shape) == shape and resets.dtype == torch.bool and resets.device == like.device,
        f"resets None or bool {list(shape)} on {like.device}",
        f"{list(resets.shape)} {resets.dtype} on {resets.device}",
        "one flag per row and step: the state is zeroed before that step",
    )
