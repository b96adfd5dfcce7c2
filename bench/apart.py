"""Work in a process of its own: it inherits no heap that other work has left, and leaves none.

Forked, for CPUs, where the process that forks computes nothing itself: a fork of one that has computed with threads
waits for them without end. Or started anew, which takes seconds, where it may have.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any

FORK = get_context("fork")
POLL_SECONDS = 5.0  # between two looks at whether the process that asks is still there


class Ended(RuntimeError):
    """A process ended instead of answering; its traceback is on the screen then."""


@dataclass(frozen=True)
class Apart:
    """A process that answers questions. A context: the process ends with it."""

    name: str
    process: ForkProcess
    pipe: Connection

    def ask(self, question: Any = None) -> Any:
        """The answer, or Ended."""
        try:
            self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise Ended(f"{self.name} ended without an answer, exit code {self.process.exitcode}") from None

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def start(name: str, work: Callable[[], Callable[[Any], Any]]) -> Apart:
    """Calls `work` in a new process; what that returns answers there, for as long as this process lives."""
    import torch._dynamo  # noqa: F401 - else every process loads it at its first operator of ours, for seconds

    here, there = FORK.Pipe()
    parent = os.getpid()

    def serve() -> None:
        answer = work()
        while os.getppid() == parent:
            if there.poll(POLL_SECONDS):
                there.send(answer(there.recv()))

    process = FORK.Process(target=serve, name=name)
    process.start()
    there.close()
    return Apart(name, process, here)


def computed_anew(name: str, function: Callable[[], Any]) -> Any:
    """What `function` returns, which can be pickled, as that can, from a new interpreter. Ended where that ends."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function).result()
        except BrokenProcessPool:
            raise Ended(f"{name} ended without an answer") from None
