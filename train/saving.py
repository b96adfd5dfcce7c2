"""Saving while training goes on: a copy is made at once, hashing and writing happen on a thread beside it."""

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hotplate.train import checkpoint
from hotplate.train.checkpoint import TEMPORARY, Parts
from hotplate.train.guard import Saves
from hotplate.train.manifest import Shard
from hotplate.train.ranks import Ranks
from hotplate.train.tensor_files import Piece


class Saver:
    """The checkpoints of one run, of which one at a time is being written. Every rank has its own and calls it at the
    same steps; the threads of all ranks agree among themselves whether a checkpoint is complete."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks, saves: Saves) -> None:
        """`folder`: the run's checkpoints, which all ranks see. `saves`: patience with the disk; its count of failures
        is the same on all ranks."""
        self._folder, self._keep, self._ranks, self._saves = folder, keep, ranks, saves
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, parts: Parts, trainer: Mapping[str, Any]) -> None:
        """Begin to save `parts` (this rank's pieces) as they are now; they may change when this returns. Waits for the
        save before, if that is still being written."""
        self.wait()
        copies, facts = snapshot(parts), dict(trainer)
        self._thread = threading.Thread(target=self._run, args=(step, copies, facts), name="saver", daemon=True)
        self._thread.start()

    def wait(self) -> bool:
        """Until nothing is being written; whether the last save was completed. Raises what ended the writing: too many
        failures in a row (StorageError), or what was not foreseen."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._saves.failed == 0

    def _run(self, step: int, parts: Parts, trainer: Mapping[str, Any]) -> None:
        try:
            self._write(step, parts, trainer)
        except BaseException as error:  # whatever it is, it belongs to the training thread
            self._error = error

    def _write(self, step: int, parts: Parts, trainer: Mapping[str, Any]) -> None:
        what, final = f"checkpoint of step {step}", checkpoint.folder_of(self._folder, step)
        temporary = final.with_name(f"{TEMPORARY}{final.name}")
        shard, failed = self._saves.attempt(
            what, lambda: checkpoint.write_shard(temporary, self._ranks.rank, parts).to_json()
        )
        size = sum(piece.data.nbytes for pieces in parts.values() for piece in pieces.values())
        reports = self._ranks.collect({"shard": shard, "failed": failed, "bytes": size})
        if self._ranks.main:
            size = sum(report["bytes"] for report in reports)
            failed = next((report["failed"] for report in reports if report["failed"] is not None), None)
            if failed is None:
                shards = [Shard.from_json(report["shard"]) for report in reports]
                _, failed = self._saves.attempt(what, lambda: checkpoint.commit(temporary, final, shards, trainer))
            if failed is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                self._prune()
        failed = self._ranks.share(failed, background=True)
        if (warning := self._saves.count(what, self._folder, size, failed)) is not None and self._ranks.main:
            self._saves.say(warning)

    def _prune(self) -> None:
        try:
            checkpoint.prune(self._folder, self._keep)
        except OSError as error:
            self._saves.say(f"warning: older checkpoints not removed: {error}")


def snapshot(parts: Parts) -> dict[str, dict[str, Piece]]:
    """The pieces copied into memory of the host; from a GPU into pinned memory, all copies under way at once."""
    copies: dict[str, dict[str, Piece]] = {}
    devices = set()
    for part, pieces in parts.items():
        copies[part] = {}
        for name, piece in pieces.items():
            data = piece.data.detach()
            copy = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
            copy.copy_(data, non_blocking=True)
            copies[part][name] = Piece(copy, piece.shape, piece.start)
            if data.is_cuda:
                devices.add(data.device)
    for device in devices:
        torch.cuda.synchronize(device)
    return copies


def shared_out(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> dict[str, Piece]:
    """Of tensors that every rank holds alike, those that this rank writes: about as many bytes as each other one."""
    loads = [0] * ranks.world
    mine: dict[str, Piece] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        owner = loads.index(min(loads))
        loads[owner] += tensor.nbytes
        if owner == ranks.rank:
            mine[name] = Piece.whole(tensor)
    return mine
