"""C kernels as they are built for processors with fewer instructions than this one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hotplate.kernels.native import build

LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")  # AVX-512, AVX2, SSE4.2
OLDER = {"AVX512": LEVELS, "AVX2": LEVELS[1:]}.get(torch.backends.cpu.get_cpu_capability(), ())
needs_older = pytest.mark.skipif(not OLDER, reason="an x86 processor with AVX2")


@contextmanager
def built_for(processor: str, library: Callable[..., Any]) -> Iterator[None]:
    """Rooms are built for `processor` inside; `library`: the room's cached function that loads what was built."""
    flags = build.FLAGS
    caches = (build._toolchain, build._loaded, library)
    try:
        build.FLAGS = tuple(f"-march={processor}" if flag == "-march=native" else flag for flag in flags)
        for cached in caches:
            cached.cache_clear()
        yield
    finally:
        build.FLAGS = flags
        for cached in caches:
            cached.cache_clear()
