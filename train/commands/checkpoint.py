"""`hotplate checkpoint verify|convert|prune`: what a run has saved, checked, put into one file each, or thinned out."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hotplate.train import checkpoint
from hotplate.train.console import say
from hotplate.train.errors import InputError
from hotplate.train.guard import RunLock

Out = Annotated[str, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True)
class Verify:
    """Hash every file of a checkpoint, or of all of a run's; exit code 1 when one is damaged."""

    folder: tyro.conf.Positional[str]
    """run or checkpoint folder"""


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint of many ranks as one with a file each for weights, optimiser and state."""

    folder: tyro.conf.Positional[str]
    """run folder (its newest) or checkpoint folder"""
    out: Out
    """new checkpoint folder"""
    weights_only: bool = False
    """leave out optimiser and state: enough to evaluate, generate and export; weights in fp32 where masters are"""


@dataclass(frozen=True)
class Prune:
    """Remove a run's checkpoints beyond the newest complete ones, and what was set aside as damaged."""

    run: tyro.conf.Positional[str]
    """run folder"""
    keep: int = 1
    """complete checkpoints that stay, all their hashes checked"""


Command = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
)


def main(arguments: Sequence[str]) -> int:
    """Run one subcommand."""
    command = tyro.cli(Command, prog="hotplate checkpoint", args=list(arguments))  # type: ignore[call-overload]
    if isinstance(command, Verify):
        return _verify(Path(command.folder))
    if isinstance(command, Convert):
        return _convert(command, Path(command.out))
    return _prune(Path(command.run), command.keep)


def _verify(folder: Path) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run or checkpoint folder")
    listed = checkpoint.listing(folder / "checkpoints")
    if not listed and not (folder / checkpoint.MANIFEST).exists():
        raise InputError(f"{folder}: no checkpoint there, nor in {folder / 'checkpoints'}")
    damaged = 0
    for path in listed or [folder]:
        wrong = checkpoint.problem(path)
        damaged += wrong is not None
        say(wrong if wrong is not None else f"{path}: {_described(checkpoint.load(path, verify=False))}, complete")
    return 1 if damaged else 0


def _described(found: checkpoint.Checkpoint) -> str:
    files, size = found.manifest.files, sum(fact.bytes for fact in found.manifest.files.values())
    return f"step {found.trainer.get('step')}, {len(files)} files, {size:,} bytes"


def _convert(command: Convert, out: Path) -> int:
    if out.exists():
        raise InputError(f"{out}: exists; choose another -o, nothing is overwritten")
    found = checkpoint.find(Path(command.folder))
    try:
        if command.weights_only:
            checkpoint.write(out, {"model": found.weights, "optimizer": {}, "state": {}}, found.trainer)
        else:
            parts = {"model": found.model, "optimizer": found.optimizer, "state": found.state}
            checkpoint.write(out, parts, found.trainer)
    except OSError as error:
        raise InputError(f"{out}: not written: {error}; free some space or choose another -o") from error
    say(f"{out}: {_described(checkpoint.load(out))}, from {found.path}")
    return 0


def _prune(run: Path, keep: int) -> int:
    if keep < 1:
        raise InputError(f"--keep {keep}: at least one checkpoint stays; remove the run folder to drop it all")
    folder = run / "checkpoints"
    if not checkpoint.listing(folder):
        raise InputError(f"{run}: no checkpoint in {folder}")
    lock = RunLock(run)  # not while a run is writing
    try:
        gone = checkpoint.prune(folder, keep, verify=True)
        for path in sorted(folder.glob(f"{checkpoint.DAMAGED}*")):
            shutil.rmtree(path)
            gone.append(path)
    except OSError as error:
        raise InputError(f"{folder}: {error}") from error
    finally:
        lock.release()
    left = checkpoint.listing(folder)
    say(f"removed {len(gone)}: {', '.join(path.name for path in gone) or 'nothing'}; {len(left)} left")
    return 0
