"""A plugin for pytest: Triton's interpreter without what it does for nothing, which is half of its time.

It patches triton.language at every call of a device function, although the kernel's launch did it; and it works out
whether a sum of integers overflows for an assertion that is off.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

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
