"""What keeps a run safe from its surroundings: one owner per run folder, an orderly stop on signals, patience with
disks, and advice when memory runs out."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, TypeVar

import torch

from hotplate.train.errors import InputError, StorageError

LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)  # waiting mends none

Result = TypeVar("Result")


class RunLock:
    """The run folder belongs to one process at a time; the kernel frees the lock however that process ends."""

    def __init__(self, folder: Path) -> None:
        """InputError naming the owner when the folder is taken."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.lock"
        self._file: IO[str] = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise InputError(
                f"{folder}: in use by {owner}; stop that process or choose another --run.folder"
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


class StopSignal:
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop after the current step; a second one ends the process as usual."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self.restore()

    def restore(self) -> None:
        """Give the signals back to who handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Saves:
    """Writes that may fail: transient errors are tried again, a failure is a warning, and too many in a row end the
    run. Older checkpoints stay as they are either way."""

    def __init__(self, attempts: int, failures: int, say: Callable[[str], None], pause: float = 1.0) -> None:
        """`attempts` of one save with pauses of `pause`, twice that, ... seconds; `failures` in a row that end."""
        self._attempts, self._failures, self.say, self._pause = max(1, attempts), max(1, failures), say, pause
        self.failed = 0  # in a row

    def attempt(self, what: str, write: Callable[[], Result]) -> tuple[Result | None, str | None]:
        """What `write` gives, or why it went wrong every time. After an error it must be able to begin again."""
        for attempt in range(1, self._attempts + 1):
            try:
                return write(), None
            except OSError as error:
                if attempt == self._attempts or error.errno in LASTING:
                    return None, str(error)
                wait = self._pause * 2 ** (attempt - 1)
                self.say(f"warning: {what} not saved: {error}; trying again in {wait:g} s")
                time.sleep(wait)
        raise AssertionError("the last attempt either returns or raises")

    def count(self, what: str, folder: Path, needed: int, error: str | None) -> str | None:
        """What to say about a save that is over, if anything. StorageError when it is the last of too many failures in
        a row."""
        if error is None:
            self.failed = 0
            return None
        self.failed += 1
        room = f"it needs about {needed:,} bytes, {_free(folder):,} are free"
        if self.failed >= self._failures:
            raise StorageError(
                f"{what} not saved: {error} ({room}); that were {self.failed} in a row: make room or mend the disk of "
                f"{folder}, then go on from the last checkpoint with --run.resume auto"
            )
        return f"warning: {what} not saved: {error} ({room}); older checkpoints are intact, training goes on"


def keep_memory(path: Path, device: torch.device) -> Path | None:
    """A snapshot of what is allocated on a GPU; None where there is none, or it cannot be written."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.memory._dump_snapshot(str(path))
    except (OSError, RuntimeError):
        return None
    return path


def _free(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
