"""`hotplate bench ratio [BASE]`: this tree against another revision, step by step in turns, on this machine."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import tyro

from hotplate.bench.gates import pairs, worker
from hotplate.bench.gates.pairs import Finding
from hotplate.train import settings
from hotplate.train.console import say
from hotplate.train.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("kernels", "model", "train", "bench")
ARM_SECONDS = 0.15  # of one tree in a pair
MOST_STEPS = 1000
PADDING = 1000  # bytes by which the heap of a second pair of processes starts later
ALLOWED = "Slower:"  # begins a line of a commit message that accepts a slower step, and says why


@dataclass(frozen=True, kw_only=True)
class RatioConfig:
    """Time training steps of two trees in pairs, and test whether this one is slower (bench/gates/pairs.py)."""

    base: Annotated[str | None, tyro.conf.Positional] = None
    """revision to compare with; none = where this branch left main, or the commit before on main itself"""
    models: tuple[str, ...] = ("gpt-nano", "qlstm-nano")
    """model presets, each tested by itself"""
    self_test: bool = False
    """this tree against itself: the test must not call it slower"""
    seconds: float = ARM_SECONDS
    """processor seconds of one tree in a pair"""


def main(arguments: Sequence[str]) -> int:
    """1 when a model is slower twice, with fresh processes the second time, and no commit since the base accepts it.
    At fixed addresses trees differ by where memory lies as often as they are timed: the second time it is elsewhere."""
    config = settings.parse(RatioConfig(), arguments, "hotplate bench ratio")
    with ExitStack() as stack:
        base = ROOT if config.self_test else stack.enter_context(_worktree(_revision(config.base)))
        slower = [name for name in config.models if all(_slower(name, base, config.seconds, t) for t in range(2))]
    if not slower:
        return 0
    accepted = "" if config.self_test else _git("log", f"{_revision(config.base)}..HEAD", "--format=%B")
    reasons = [line for line in accepted.splitlines() if line.startswith(ALLOWED)]
    say(f"slower: {', '.join(slower)}" + (f"; accepted: {reasons[0]}" if reasons else ""))
    return 0 if reasons else 1


def _slower(name: str, base: Path, seconds: float, attempt: int) -> bool:
    """One test with processes of its own. A tree in which a worker cannot run decides nothing."""
    with ExitStack() as stack:
        try:
            other, head = (stack.enter_context(timed(tree, name, attempt)) for tree in (base, ROOT))
        except InputError as error:
            say(f"{name}: inconclusive: {error}")
            return False
        # As many of both: a step that follows the other tree's is slower, and would weigh more in the shorter time.
        steps = min(MOST_STEPS, max(1, round(seconds / max(head(1), other(1), 1e-6))))
        found: Finding = pairs.compare(lambda: head(steps), lambda: other(steps), seed=attempt)
    say(f"{name}: {found}")
    return found.verdict == "slower"


@contextmanager
def timed(tree: Path, name: str, attempt: int = 0) -> Iterator[Callable[[int], float]]:
    """Processor seconds of so many steps of `tree`, in a process of its own, whose heap starts elsewhere for each
    `attempt`. InputError when it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            Path(folder, "hotplate").mkdir(exist_ok=True)
            Path(folder, "hotplate", part).symlink_to(tree / part)
        calm = {"PYTHONPATH": folder, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        calm["HOTPLATE_PADDING"] = "." * (PADDING * attempt)  # strings of the environment lie on the heap
        command = [sys.executable, "-P", str(Path(worker.__file__).resolve()), name]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | calm)
        asked, told_back, process_errors = process.stdin, process.stdout, process.stderr
        assert asked is not None and told_back is not None and process_errors is not None

        def ask(steps: int, asked: IO[str] = asked, told_back: IO[str] = told_back) -> float:
            asked.write(f"{steps}\n")
            asked.flush()
            return float(told_back.readline())

        try:
            ready, _, told_where = told_back.readline().strip().partition(" ")
            addresses, _, where = told_where.partition(" ")
            if ready != "ready":
                told = process_errors.read().strip().splitlines() or ["no message"]
                raise InputError(f"{tree}: no steps of {name}: {told[-1]}")
            if not Path(where).is_relative_to(tree.resolve()):
                raise InputError(f"{tree}: no steps of {name}: Python found the model in {where}")
            if addresses == "random":
                say(f"{name}: this machine keeps addresses random, so unchanged trees may differ more")
            yield ask
        finally:
            asked.close()
            process.wait(timeout=60)


@contextmanager
def _worktree(revision: str) -> Iterator[Path]:
    """A checkout of the revision beside this one, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base"
        _git("worktree", "add", "--detach", "--quiet", str(path), revision)
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def _revision(base: str | None) -> str:
    """The commit to compare with. InputError where git knows none."""
    if base is not None:
        return _git("rev-parse", "--verify", f"{base}^{{commit}}")
    for main in ("origin/main", "main"):
        try:
            found = _git("merge-base", "HEAD", main)
        except InputError:
            continue
        return found if found != _git("rev-parse", "HEAD") else _git("rev-parse", "HEAD~1")
    return _git("rev-parse", "HEAD~1")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {' '.join(arguments)}: {done.stderr.strip()}; name a revision that is here")
    return done.stdout.strip()
