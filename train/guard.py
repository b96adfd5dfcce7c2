"""What keeps a run safe from its surroundings: one owner per run folder, and an orderly stop on signals."""

import fcntl
import os
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import IO

from hotplate.train.errors import InputError


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
