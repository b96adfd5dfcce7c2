"""Work in a process of its own, forked: it inherits no heap that other work has left, and leaves none.

For CPUs: the process that forks must itself compute nothing with threads or on a GPU, which a forked one cannot use.
"""

import os
from collections.abc import Callable
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


def computed_apart(name: str, function: Callable[[], Any]) -> Any:
    """What `function` returns, computed in a process of its own."""
    with start(name, lambda: lambda _: function()) as apart:
        return apart.ask()
