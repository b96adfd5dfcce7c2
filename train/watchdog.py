"""Signs of life: what each rank does is in the run folder, and a rank without progress ends the run with all stacks.

    RUN/ranks/00000.json     of a rank: process, host, step, phase, seconds paid so far; rewritten while it lives
    RUN/ranks/00000.stacks   Python stacks of all its threads, once they were asked for
    RUN/ranks/nccl-collectives-0   of a rank on NCCL: what flight.py says

A thread looks every second whether the step or the phase changed. After `seconds` without a change it asks every rank
on this host for its stacks (SIGUSR2, answered by faulthandler in C, also while Python waits inside a collective),
prints them with each rank's step and phase, and ends the process with HUNG: the launcher then ends or restarts all.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from hotplate.train import flight
from hotplate.train.budget import Goodput
from hotplate.train.errors import InputError
from hotplate.train.ranks import Ranks
from hotplate.train.untrusted import read_object

HUNG = 75  # EX_TEMPFAIL of sysexits.h: the same command may well succeed
FOLDER, TOLD = "ranks", "told"
POLL_SECONDS = 1.0
OTHERS_SECONDS = 10.0  # between the signs of life of ranks other than the main one: a shared disk has many writers
ANSWER_SECONDS = 3.0  # that ranks get to write their stacks
BACKSTOP_SECONDS = 30.0  # after which C code alone ends a process whose Python cannot run


@dataclass(frozen=True)
class Life:
    """A rank's last sign of life."""

    rank: int
    process: int
    started: int  # ticks since boot: with the process id, one process only
    host: str
    step: int
    phase: str
    unix_time: float
    paid_seconds: dict[str, float]
    down_seconds: float

    @classmethod
    def read(cls, path: Path) -> "Life | None":
        """None where there is none, or it cannot be read."""
        try:
            life = cls(**read_object(path, "a sign of life", "remove it", most=1 << 16))
        except (InputError, TypeError):
            return None
        kinds = [type(value) for value in vars(life).values()]
        counted = [isinstance(seconds, float) for seconds in life.paid_seconds.values()] if kinds[7] is dict else []
        return life if kinds == [int, int, int, str, int, str, float, dict, float] and all(counted) else None

    @property
    def here(self) -> bool:
        """Whether that very process still runs, on this host."""
        return self.host == socket.gethostname() and self.started == started_ticks(self.process) != 0


def started_ticks(process: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is no such process, or no /proc."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def place(folder: Path, rank: int) -> Path:
    return folder / FOLDER / f"{rank:05d}.json"


def lives(folder: Path) -> list[Life]:
    """What the run folder says of its ranks."""
    found = (Life.read(path) for path in sorted((folder / FOLDER).glob("*.json")))
    return [life for life in found if life is not None]


class Stepping(Protocol):
    """What counts updates."""

    step: int


class Watchdog:
    """Watches one rank: the steps of what it follows, and the goodput meter's phase."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        goodput: Goodput,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """`seconds` without progress end the process; with 0 it only gives signs of life."""
        self._followed: Stepping | None = None
        self._folder, self._rank, self._world, self._goodput = folder, ranks.rank, ranks.world, goodput
        self._seconds, self._say, self._began = seconds, say, time.time()
        self._path = place(folder, ranks.rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if ranks.main:
            self._forget_others()
            for line in flight.told(0):
                say(f"from the processes before: {line}")
        self._stacks = self._path.with_suffix(".stacks").open("w+", encoding="utf-8")
        if hasattr(signal, "SIGUSR2"):
            faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        self._closed = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()
        for line in flight.told(self._began) if error is not None else []:
            self._say(line)

    def follow(self, progress: Stepping) -> None:
        """From now on the step is that of `progress`."""
        self._followed = progress

    @property
    def step(self) -> int:
        """Updates done."""
        return 0 if self._followed is None else self._followed.step

    def close(self) -> None:
        """The last sign of life; an empty file of stacks is removed."""
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if hasattr(signal, "SIGUSR2"):
            faulthandler.unregister(signal.SIGUSR2)
        self._write()
        empty = not self._stacks.tell() and not os.fstat(self._stacks.fileno()).st_size
        self._stacks.close()
        if empty:
            self._path.with_suffix(".stacks").unlink(missing_ok=True)

    def _forget_others(self) -> None:
        """Files of ranks that an earlier, larger run had."""
        (self._path.parent / TOLD).unlink(missing_ok=True)
        for path in self._path.parent.glob("*.*"):
            if path.stem.isdigit() and int(path.stem) >= self._world:
                path.unlink(missing_ok=True)

    def _write(self) -> None:
        goodput = self._goodput
        life = Life(
            self._rank,
            os.getpid(),
            started_ticks(os.getpid()),
            socket.gethostname(),
            self.step,
            goodput.phase[0],
            time.time(),
            goodput.snapshot(),
            goodput.down,
        )
        partial = self._path.with_suffix(".partial")
        with contextlib.suppress(OSError):  # a full disk must not end a run that could go on
            partial.write_text(json.dumps(asdict(life)) + "\n", encoding="utf-8")
            partial.replace(self._path)

    def _watch(self) -> None:
        every = POLL_SECONDS if self._rank == 0 else OTHERS_SECONDS
        seen, changed, wrote = None, time.monotonic(), time.monotonic()
        while not self._closed.wait(min(POLL_SECONDS, self._seconds / 4) if self._seconds else POLL_SECONDS):
            now = time.monotonic()
            if (found := (self.step, *self._goodput.phase)) != seen:
                seen, changed = found, now
                if self._seconds:
                    later = self._seconds + BACKSTOP_SECONDS
                    faulthandler.dump_traceback_later(later, exit=True, file=self._stacks)
            if now - wrote >= every:
                self._write()
                wrote = now
            if self._seconds and now - changed > self._seconds:
                self._end(now - changed)

    def _end(self, silent: float) -> None:
        """Say what every rank was doing and leave: the main thread may wait for ever, so nothing is tidied up."""
        self._write()
        what = f"step {self.step + 1}, phase {self._goodput.phase[0]}"
        lines = [f"error: rank {self._rank} of {self._world} made no progress for {silent:.0f} s: {what}"]
        first = self._first()
        self._collect(first)
        if first:
            for life in lives(self._folder):
                lines.append(
                    f"rank {life.rank}: process {life.process} on {life.host}, step {life.step + 1}, "
                    f"phase {life.phase}, last sign of life {time.time() - life.unix_time:.0f} s ago"
                )
                stacks = place(self._folder, life.rank).with_suffix(".stacks")
                lines += ["  " + line for line in _text(stacks).splitlines()]
            lines += flight.told(self._began)
        self._say("\n".join(lines))
        os._exit(HUNG)

    def _collect(self, ask: bool) -> None:
        """Ask this host's ranks for their stacks, and wait until they had time to answer."""
        for life in lives(self._folder) if ask else []:
            if life.here:
                with contextlib.suppress(OSError):
                    os.kill(life.process, signal.SIGUSR2)
        time.sleep(ANSWER_SECONDS)

    def _first(self) -> bool:
        """Whether this rank tells for all of them; the others' own line is enough."""
        try:
            (self._path.parent / TOLD).touch(exist_ok=False)
        except OSError:
            return False
        return True


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def account(folder: Path, saved: Mapping[str, float], goodput: Goodput) -> None:
    """Count what the run paid before this process: `saved` by phase up to the checkpoint it goes on from, what came
    after that as "lost" (it is done again), and from its last sign of life to this process's start as down."""
    began = time.time() - goodput.paid
    goodput.add(saved)
    if (life := Life.read(place(folder, 0))) is not None:
        lost = sum(life.paid_seconds.values()) - sum(saved.values())
        if lost > 0:
            goodput.add({"lost": lost})
        goodput.down = life.down_seconds + max(0.0, began - life.unix_time)
