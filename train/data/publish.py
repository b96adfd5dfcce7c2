"""A folder that appears complete or not at all, made by one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotplate.train.data.shards import NO_SPACE
from hotplate.train.errors import InputError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, a file beside it; a second process waits. The system frees it if a holder
    dies.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(f".{folder.name}.lock"), "wb")  # noqa: SIM115 - closed below, after the lock
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot write there: {error.strerror}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it becomes `folder`, on an exception it is removed.

    Call it under `exclusive(folder)`: what a killed process left behind is removed first.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        partial.rename(folder)
        _flush(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            free = shutil.disk_usage(folder.parent).free
            raise InputError(f"{folder}: the disk is full, {free:,} bytes are free; make room") from error
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
