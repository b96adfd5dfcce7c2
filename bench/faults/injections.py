"""Faults that a process does to itself at a chosen point: named in words, applied before the command runs.

A fault is `name:argument:...`. File events are Python's own audit events (open, rename, remove, mkdir, ...) on paths
that contain a word: they do not depend on what is written there, or by which thread.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.truncate")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _attempt() -> int:
    """How often a launcher has restarted this process."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _on_files(word: str, act: Callable[[int], None], events: Sequence[str] = FILE_EVENTS) -> None:
    """Call `act` with the number (from 1) of every file event whose path contains `word`."""
    seen = 0
    here = os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in events and word in str(arguments[0]) and os.getpid() == here:
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def kill_at_file(word: str, number: str) -> None:
    """SIGKILL at the N-th file event."""

    def act(seen: int) -> None:
        if seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    _on_files(word, act)


def fail_files(word: str, code: str, first: str, last: str) -> None:
    """OSError of an errno's name from the file events `first` to `last`."""
    number = getattr(errno, code)

    def act(seen: int) -> None:
        if int(first) <= seen <= int(last):
            raise OSError(number, os.strerror(number))

    _on_files(word, act, [event for event in FILE_EVENTS if event != "shutil.rmtree"])  # its steps are events, too


def slow_files(word: str, seconds: str) -> None:
    """Every file event takes so long: a disk that is far away."""
    _on_files(word, lambda _: time.sleep(float(seconds)))


def _at_step(step: str, rank: str, act: Callable[[], None]) -> None:
    """Before update number `step` (from 1) of rank `rank`, in the first attempt only."""
    from hotplate.train.step import Step

    kept, calls = Step.__call__, 0

    def called(self: Step, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(step) and _rank() == int(rank) and _attempt() == 0:
            act()
        return kept(self, *arguments, **named)

    Step.__call__ = called  # type: ignore[method-assign, assignment]


def kill_at_step(step: str, rank: str = "0") -> None:
    _at_step(step, rank, lambda: os.kill(os.getpid(), signal.SIGKILL))


def sleep_at_step(step: str, rank: str = "0") -> None:
    _at_step(step, rank, lambda: time.sleep(1e6))


def freeze_at_step(step: str, rank: str = "0") -> None:
    """The process is stopped: nothing in it runs any more, threads neither."""
    _at_step(step, rank, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def memory_at_step(step: str, rank: str = "0") -> None:
    def act() -> None:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.25 GiB.")

    _at_step(step, rank, act)


def _wrap_objective(steps: str, rank: str, change: Callable[[Any], Any]) -> None:
    """Change the loss of the updates in `steps` ("7" or "7-9", from 1) of one rank."""
    from hotplate.train.step import NextToken, Step

    first, _, last = steps.partition("-")
    chosen = range(int(first), int(last or first) + 1)
    kept_call, kept_loss, calls = Step.__call__, NextToken.__call__, 0

    def called(self: Step, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return kept_call(self, *arguments, **named)

    def loss(self: NextToken, *arguments: Any) -> Any:
        value, *rest = kept_loss(self, *arguments)
        return (change(value) if calls in chosen and _rank() == int(rank) else value, *rest)

    Step.__call__ = called  # type: ignore[method-assign, assignment]
    NextToken.__call__ = loss  # type: ignore[method-assign, assignment]


def scale_loss(steps: str, factor: str, rank: str = "0") -> None:
    """Loss (and so every gradient) times `factor`: nan, inf, 1000, ..."""
    _wrap_objective(steps, rank, lambda value: value * float(factor))


def memory_in_pass(steps: str, number: str, rank: str = "0") -> None:
    """Memory runs out between forward and backward of micro-batch `number` (from 1), in each of the tries `steps` of an
    update ("7" or "7-9", from 1)."""
    import torch

    from hotplate.train.step import Step

    kept, seen = Step.__call__, 0

    def called(self: Step, *arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen = 0
        return kept(self, *arguments, **named)

    def full(value: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == int(number):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.25 GiB.")
        return value

    Step.__call__ = called  # type: ignore[method-assign, assignment]
    _wrap_objective(steps, rank, full)


def break_graph(rank: str = "0") -> None:
    """What torch.compile cannot put into one graph, in every block."""
    import torch

    from hotplate.model.block import Block

    kept = Block.forward

    def forward(self: Block, *arguments: Any) -> Any:
        torch._dynamo.graph_break()
        return kept(self, *arguments)

    if _rank() == int(rank):
        Block.forward = forward  # type: ignore[method-assign, assignment]


def poison_gradient(steps: str, rank: str = "0") -> None:
    """A NaN in one gradient while the loss stays finite."""

    def change(value: Any) -> Any:
        value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    _wrap_objective(steps, rank, change)


def signal_in_phase(phase: str, name: str, times: str = "1") -> None:
    """A signal to this process as it enters a phase (train, evaluate, save, ...) the second time, or at its end."""
    from hotplate.train.budget import Goodput

    kept, seen = Goodput.switch, 0

    def switch(self: Goodput, to: str) -> None:
        nonlocal seen
        kept(self, to)
        if to == phase and _rank() == 0:
            seen += 1
            if seen == 2:
                for _ in range(int(times)):
                    os.kill(os.getpid(), getattr(signal, name))
                    time.sleep(0.05)

    Goodput.switch = switch  # type: ignore[method-assign, assignment]


def break_loader(step: str) -> None:
    """The background thread raises while it makes the batch of a step."""
    from hotplate.train.data.sources import PackedSource

    kept = PackedSource.batch

    def batch(self: PackedSource, number: int, rows: range) -> Any:
        if number == int(step):
            raise RuntimeError("the disk of the data went away")
        return kept(self, number, rows)

    PackedSource.batch = batch  # type: ignore[method-assign, assignment]


def jump_clock(seconds: str) -> None:
    """The wall clock leaps by so many seconds a call, forth and back."""
    kept, calls = time.time, 0

    def leaping() -> float:
        nonlocal calls
        calls += 1
        return kept() + (float(seconds) if calls % 2 else -float(seconds))

    time.time = leaping  # type: ignore[assignment]


def watch_pickle() -> None:
    """End the process at once where anything is unpickled from a file of the run."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            os.write(2, f"unpickled {arguments}\n".encode())

    sys.addaudithook(hook)


FAULTS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        kill_at_file,
        fail_files,
        slow_files,
        kill_at_step,
        sleep_at_step,
        freeze_at_step,
        memory_at_step,
        memory_in_pass,
        break_graph,
        scale_loss,
        poison_gradient,
        signal_in_phase,
        break_loader,
        jump_clock,
        watch_pickle,
    )
}


def apply(faults: list[str]) -> None:
    """Prepare this process for the faults."""
    for fault in faults:
        name, *arguments = fault.split(":")
        FAULTS[name](*arguments)
