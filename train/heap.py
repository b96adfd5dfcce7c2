"""What the C library does with memory that torch frees on a CPU.

By default glibc gives large blocks back to the system and asks for them again, and every page of them is cleared and
mapped anew: with tensors of megabytes, in every training step. A training step frees what its next one needs.
"""

import ctypes
from functools import cache

# Parameters of mallopt, from malloc.h.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


@cache
def _library() -> ctypes.CDLL | None:
    """The C library if it knows mallopt."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") else None


def adjustable() -> bool:
    """Whether this C library can be told."""
    return _library() is not None


def keep_freed_memory() -> bool:
    """From now on freed memory stays with the process, whose resident size no longer falls; whether the C library can.

    Memory of other threads' heaps may still be returned.
    """
    library = _library()
    return library is not None and all([library.mallopt(MMAP_MAX, 0), library.mallopt(TRIM_THRESHOLD, -1)])
