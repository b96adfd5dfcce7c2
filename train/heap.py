"""What the C library does with memory that torch frees on a CPU.

By default glibc gives large blocks back to the system and asks for them again, and every page of them is cleared and
mapped anew: with tensors of megabytes, in every training step. A training step frees what its next one needs.
"""

import ctypes
from functools import cache

# Parameters of mallopt, from malloc.h. Naming one of them ends the library's own adjustment of the thresholds.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
USUAL_MMAP_MAX = 65536
MOST_MMAP_THRESHOLD = 32 << 20  # where glibc's adjustment ends, once blocks as large were freed; it trims at twice that


@cache
def _library() -> ctypes.CDLL | None:
    """The C library if it knows mallopt."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") else None


def adjustable() -> bool:
    """Whether this C library can be told."""
    return _library() is not None


def _set(values: dict[int, int]) -> bool:
    library = _library()
    return library is not None and all([library.mallopt(name, value) for name, value in values.items()])


def keep_freed_memory() -> bool:
    """From now on freed memory stays with the process, whose resident size no longer falls; whether the C library can.

    Memory of other threads' heaps may still be returned.
    """
    return _set({MMAP_MAX: 0, TRIM_THRESHOLD: -1})


def return_freed_memory() -> bool:
    """From now on what glibc does in a process that frees large blocks. Smaller ones go on using the holes that kept
    memory has left in the heap."""
    usual = {MMAP_MAX: USUAL_MMAP_MAX, MMAP_THRESHOLD: MOST_MMAP_THRESHOLD, TRIM_THRESHOLD: 2 * MOST_MMAP_THRESHOLD}
    return _set(usual)
