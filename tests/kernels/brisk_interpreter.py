"""A plugin for pytest: Triton's interpreter without what it does for nothing, which is most of its time.

It patches triton.language at every call of a device function, although the kernel's launch did it; it works out whether
a sum of integers overflows for an assertion that is off; and for every value it makes the types and shapes again that
it has made for thousands before. No value is computed in another way.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

patch = interpreter._patch_lang
patched: set[int] = set()  # the modules, by their globals, that the launch that runs has patched it for


class Patches:
    """What a launch restores at its end."""

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def restore(self) -> None:
        self._scope.restore()
        patched.clear()


def patch_once(fn: Callable[..., Any]) -> Patches | None:
    """None is for device functions alone: nobody restores after them."""
    if id(fn.__globals__) in patched:
        return None
    patched.add(id(fn.__globals__))
    return Patches(patch(fn))


interpreter._patch_lang = patch_once
options = interpreter.interpreter_builder.options
assert not options.debug  # else the assertion were on
interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


def patch_attr(owner: Any, name: str, member: Callable[..., Any], builder: Any, scope: Any) -> None:
    """Triton's copies the named arguments at every call, to leave one out."""

    def called(*arguments: Any, **named: Any) -> Any:
        named["_semantic"] = interpreter.interpreter_semantic
        return member(*arguments, **named)

    scope.set_attr(owner, name, called)


interpreter._patch_attr = patch_attr
np_dtype = interpreter._get_np_dtype
np_dtypes: dict[str, Any] = {}


def np_dtype_by_name(dtype: Any) -> Any:
    if dtype.name not in np_dtypes:
        np_dtypes[dtype.name] = np_dtype(dtype)
    return np_dtypes[dtype.name]


interpreter._get_np_dtype = np_dtype_by_name
TritonSemantic.computation_type_impl = functools.cache(TritonSemantic.computation_type_impl)

unwrap = core._unwrap_if_constexpr
PLAIN = (bool, int, float, str, type(None), core.dtype, core.pointer_type, core.block_type, core.tensor)


def unwrap_quickly(value: Any) -> Any:
    kind = type(value)
    if kind is core.constexpr:
        return value.value
    return value if kind in PLAIN else unwrap(value)


core._unwrap_if_constexpr = unwrap_quickly

dtypes_equal = core.dtype.__eq__
core.dtype.__eq__ = lambda self, other: self is other or dtypes_equal(self, other)

make_block_type = core.block_type.__init__
block_types: dict[tuple[Any, ...], dict[str, Any]] = {}


def block_type(self: Any, element_ty: Any, shape: Any) -> None:
    key = (element_ty.name, getattr(element_ty, "address_space", ""), *map(unwrap_quickly, shape))
    if key not in block_types:
        make_block_type(self, element_ty, shape)
        block_types[key] = dict(vars(self))
    vars(self).update(block_types[key])


core.block_type.__init__ = block_type


@functools.cache
def shape_and_size(shape: tuple[int, ...]) -> tuple[Any, Any]:
    return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(math.prod(shape))


def tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = shape_and_size(tuple(type.shape.values) if type.is_block() else ())


core.tensor.__init__ = tensor

broadcast = TritonSemantic.broadcast_impl_value


def broadcast_where_shapes_differ(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
    return (left, right) if left.shape is right.shape else broadcast(self, left, right)


TritonSemantic.broadcast_impl_value = broadcast_where_shapes_differ
