"""Which implementation a call runs, and what every Triton launch shares.

`auto` is a rule, not a fallback: Triton on a CUDA tensor where Triton is installed; on a CPU tensor the room's C code
where a C compiler is there and the dtype is one of NATIVE_DTYPES; the eager form in every other case. A name other
than `auto` runs that implementation or raises.
"""

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS

from hotplate.kernels import native
from hotplate.kernels.checks import want
from hotplate.kernels.direct import direct

IMPLS = ("auto", "eager", "native", "reference", "triton")
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
Function = TypeVar("Function", bound=Callable)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def constant(function: Function) -> Function:
    """What torch.compiler.assume_constant_result does, without importing the compiler, which takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@cache
def _found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@constant
def has_triton() -> bool:
    return _found("triton")


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors: TRITON_INTERPRET=1, read when they are defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@constant
def _why_not_native(room: str) -> str | None:
    """native.why_not, as a constant to torch.compile, which would otherwise trace the building."""
    return native.why_not(room)


def _auto(like: Tensor, room: str, known: Collection[str]) -> str:
    if like.is_cuda and "triton" in known and like.dtype in TRITON_DTYPES and has_triton():
        return "triton"
    cpu_native = like.device.type == "cpu" and "native" in known and like.dtype in NATIVE_DTYPES
    return "native" if cpu_native and _why_not_native(room) is None else "eager"


def choose_impl(room: str, impl: str, like: Tensor, known: Collection[str] = IMPLS, op: str | None = None) -> str:
    """The implementation that `impl` names for an input like `like`: a member of `known` other than "auto". `op` is how
    messages call it, where a room has several.

    ValueError if it is unknown, or named and cannot run here; the message says why.
    """
    op = op or room
    want(op, impl in known, f"impl in {sorted(known)}", repr(impl), "name one of these")
    if impl == "auto":
        return _auto(like, room, known)
    if impl == "native":
        want(
            op,
            like.device.type == "cpu" and like.dtype in NATIVE_DTYPES,
            "a CPU tensor of float32 or bfloat16 with impl='native'",
            f"{like.dtype} on {like.device}",
            "use impl='eager'",
        )
        reason = _why_not_native(room)
        want(op, reason is None, "a library built from C with impl='native'", reason or "", "or use impl='eager'")
    if impl == "triton":
        want(
            op,
            has_triton(),
            "Triton with impl='triton'",
            "no module named triton",
            "pip install 'hotplate[triton]' or use impl='auto'",
        )
        want(
            op,
            (like.is_cuda or interpreting()) and like.dtype in TRITON_DTYPES,
            "a CUDA tensor of float32, bfloat16 or float16 with impl='triton'",
            f"{like.dtype} on {like.device}",
            "use impl='auto', or TRITON_INTERPRET=1 to run the kernels on a CPU for debugging",
        )
    return impl


@constant
def _imported(module: str) -> bool:
    """That the module is there, as a constant to torch.compile, which would otherwise trace the import. (It looks
    through functools.cache, so the mark stands on a function without one.)"""
    if module not in sys.modules:
        importlib.import_module(module)
    return True


def operator(module: str, name: str) -> Any:
    """The operator hotplate::<name>, to be called directly. `module` registers it when it is imported: no sooner than
    it is asked for."""
    _imported(module)
    if torch.compiler.is_compiling():
        return getattr(torch.ops.hotplate, name)
    return direct(OPDEFS[f"hotplate::{name}"])


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """For C: where the tensor's elements start; NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def launch(kernel: Any, like: Tensor, programs: int, *arguments: object, num_warps: int, **constants: object) -> None:
    """Starts `programs` of a Triton kernel on the device of `like`; none where there is nothing to compute.

    Products fuse into sums whatever the default of the installed Triton is: budgets and error bounds count on it.
    """
    if programs:
        with torch.cuda.device_of(like):
            kernel[(programs,)](*arguments, num_warps=num_warps, enable_fp_fusion=True, **constants)


def wrap_triton(kernel: Any) -> Any:
    """torch.library.wrap_triton, by whose name torch finds the kernels of a triton_op; the kernel itself in the
    interpreter, whose functions not every version of torch accepts."""
    return kernel if interpreting() else torch.library.wrap_triton(kernel)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n; what a Triton block can be."""
    return 1 << max(0, n - 1).bit_length()
