"""Checkpoints: a folder per step that is complete or not there at all, whoever wrote it and whoever reads it.

    checkpoints/step-00000120/
        model-00000.safetensors      weights, or rank 0's pieces of them
        optimizer-00000.safetensors  moments, master weights
        state-00000.safetensors      recurrent state by row, random generators
        model-00001.safetensors ...  the same of rank 1
        trainer.json                 step, tokens, meters, plan, fingerprints, resolved config
        manifest.json                bytes and sha256 of each file, and where every tensor's pieces are: written last

Ranks write their files into a temporary folder and flush them to the disk; the main rank adds the manifest and renames
the folder. A folder without a manifest, or whose files differ from it, is never loaded. Tensors are put together from
their pieces when they are read, so nothing depends on how many ranks there were, or on their engine. Nothing is
pickled.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotplate.train import tensor_files
from hotplate.train.errors import InputError
from hotplate.train.manifest import PARTS, TRAINER, Entry, Manifest, Shard, file_name, read_json
from hotplate.train.ranks import ALONE, Ranks
from hotplate.train.tensor_files import Fact, Layout, Piece, Reader

PREFIX = "step-"
TEMPORARY = ".writing-"
DAMAGED = ".damaged-"
MANIFEST = "manifest.json"
Parts = Mapping[str, Mapping[str, Piece]]  # by part, then by tensor


class Tensors(Mapping[str, Tensor]):
    """The tensors of one part of a checkpoint, read when they are asked for. InputError for a file that is not what
    the manifest says."""

    def __init__(self, folder: Path, part: str, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self._folder, self._part = folder, part
        self._readers: dict[int, Reader] = {}

    def __getitem__(self, name: str) -> Tensor:
        layout = self.entries[name].layout
        return self.part(name, 0, math.prod(layout.shape)).view(layout.shape)

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor in row-major order."""
        entry = self.entries[name]
        found = torch.empty(max(0, stop - start), dtype=entry.layout.dtype)
        for rank, begin, end in entry.spans():
            low, high = max(start, begin), min(stop, end)
            if low < high:
                piece = self._piece(name, entry, rank, end - begin)
                found[low - start : high - start] = piece[low - begin : high - begin]
        return found

    def _piece(self, name: str, entry: Entry, rank: int, count: int) -> Tensor:
        """The elements that `rank` wrote."""
        whole = count == math.prod(entry.layout.shape)
        layout = entry.layout if whole else Layout(entry.layout.dtype, (count,))
        path = self._folder / file_name(self._part, rank)
        try:
            if rank not in self._readers:
                self._readers[rank] = Reader(path)
            return self._readers[rank].get(name, layout).reshape(-1)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}; use another checkpoint") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """The shape of a tensor in memory or in a checkpoint; None where there is none."""
    if isinstance(tensors, Tensors):
        return tensors.entries[name].layout.shape if name in tensors.entries else None
    return tuple(tensors[name].shape) if name in tensors else None


def layouts_of(tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Types and shapes of tensors in memory or in a checkpoint; nothing is read."""
    if isinstance(tensors, Tensors):
        return {name: entry.layout for name, entry in tensors.entries.items()}
    return {name: Layout(x.dtype, tuple(x.shape)) for name, x in tensors.items()}


def elements(tensors: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Elements [start, stop) in row-major order of a tensor in memory or in a checkpoint; no more is read."""
    return tensors.part(name, start, stop) if isinstance(tensors, Tensors) else tensors[name].flatten()[start:stop]


class Widest(Tensors):
    """A checkpoint's weights, from the fp32 master copies where it has them."""

    def __init__(self, found: "Checkpoint") -> None:
        model, optimizer = found.model, found.optimizer
        self._sources = {
            name: (optimizer, f"master.{name}") if f"master.{name}" in optimizer else (model, name) for name in model
        }
        self.entries = {name: source.entries[key] for name, (source, key) in self._sources.items()}

    def part(self, name: str, start: int, stop: int) -> Tensor:
        source, key = self._sources[name]
        return source.part(key, start, stop)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    model: Tensors
    optimizer: Tensors
    state: Tensors
    trainer: dict[str, Any]
    manifest: Manifest

    @property
    def weights(self) -> Tensors:
        """The weights, from the fp32 master copies where there are any."""
        return Widest(self)


def step_of(path: Path) -> int:
    """120 for step-00000120."""
    return int(path.name.removeprefix(PREFIX))


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` belongs in a run's `checkpoints`."""
    return folder / f"{PREFIX}{step:08d}"


def listing(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=step_of)


def write(final: Path, tensors: Mapping[str, Mapping[str, Tensor]], trainer: Mapping[str, Any]) -> None:
    """The checkpoint folder `final`, by this process alone: complete or not at all. OSError where that fails.

    Tensors of another checkpoint are read and written one at a time.
    """
    temporary = final.with_name(f"{TEMPORARY}{final.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        shard = Shard({}, {part: {} for part in PARTS})
        for part in PARTS:
            layouts = layouts_of(tensors[part])
            if layouts:
                path = temporary / file_name(part, 0)
                shard.files[path.name] = tensor_files.write(path, layouts, tensors[part].__getitem__)
            for name, layout in layouts.items():
                shard.pieces[part][name] = (layout, 0, math.prod(layout.shape))
        commit(temporary, final, [shard], trainer)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_shard(temporary: Path, rank: int, parts: Parts) -> Shard:
    """One rank's files, on the disk when this returns. OSError where that fails; then none of them is there."""
    temporary.mkdir(parents=True, exist_ok=True)
    files: dict[str, Fact] = {}
    for part, pieces in parts.items():
        held = {name: piece for name, piece in pieces.items() if piece.data.numel()}
        if not held:
            continue
        path, data = temporary / file_name(part, rank), {name: piece.data for name, piece in held.items()}
        layouts = {name: piece.stored for name, piece in held.items()}
        try:
            files[path.name] = tensor_files.write(path, layouts, data.__getitem__)
        except OSError:
            for begun in (*files, path.name):
                (temporary / begun).unlink(missing_ok=True)
            raise
    described = {
        part: {
            name: (Layout(piece.data.dtype, piece.shape), piece.start, piece.data.numel())
            for name, piece in pieces.items()
        }
        for part, pieces in parts.items()
    }
    return Shard(files, described)


def commit(temporary: Path, final: Path, shards: Sequence[Shard], trainer: Mapping[str, Any]) -> None:
    """Make a checkpoint of what all ranks have written into `temporary`. OSError where that fails, or `final` exists:
    a step's folder is never written twice."""
    if final.exists():
        raise FileExistsError(f"{final}: exists")
    for begun in (TRAINER, MANIFEST):  # by an attempt before
        (temporary / begun).unlink(missing_ok=True)
    manifest = Manifest.join(shards, _write_json(temporary / TRAINER, trainer))
    _write_json(temporary / MANIFEST, manifest.to_json())
    _flush(temporary)
    temporary.rename(final)
    _flush(final.parent)


def prune(folder: Path, keep: int, *, verify: bool = False) -> list[Path]:
    """Remove the complete checkpoints older than the newest `keep` complete ones (at least one stays); their paths.

    Complete means manifest and sizes, with `verify` also hashes. Renamed first, so that a kill half-way leaves no
    folder that looks whole.
    """
    complete = [path for path in listing(folder) if problem(path, hashes=verify) is None]
    doomed = complete[: -max(1, keep)]
    for path in doomed:
        aside = path.with_name(f"{TEMPORARY}old-{path.name}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    return doomed


def clean(folder: Path) -> list[Path]:
    """Remove what a killed process left half-written; the run folder's lock makes sure that nobody is writing it."""
    stale = list(folder.glob(f"{TEMPORARY}*"))
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return stale


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that its step can be saved again; where it is now."""
    number = 0
    while (aside := path.with_name(f"{DAMAGED}{path.name}-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def problem(path: Path, rank: int = 0, world: int = 1, *, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None. Of the hashes, which take long, every `world`-th is computed."""
    try:
        manifest = _manifest(path)
        for number, (name, want) in enumerate(sorted(manifest.files.items())):
            file = path / name
            if file.is_symlink() or not file.is_file():
                return f"{file}: missing, or not a regular file; the checkpoint is incomplete, use an older one"
            hashed = hashes and number % world == rank
            found = tensor_files.fact(file) if hashed else Fact(file.stat().st_size, want.sha256)
            if found != want:
                facts = f"the manifest says {asdict(want)}, the file has {asdict(found)}"
                return f"{file}: damaged: {facts}; use an older checkpoint"
        _read(path / TRAINER)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error}"
    return None


def load(path: Path, *, verify: bool = True) -> Checkpoint:
    """The checkpoint in `path`. InputError names the file that is missing, short, foreign or changed; without
    `verify` only what is wrong with the manifest."""
    if verify and (wrong := problem(path)) is not None:
        raise InputError(wrong)
    manifest = _manifest(path)
    model, optimizer, state = (Tensors(path, part, manifest.tensors[part]) for part in PARTS)
    return Checkpoint(path, model, optimizer, state, _read(path / TRAINER), manifest)


def newest(folder: Path, ranks: Ranks = ALONE) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones. InputError when there are
    checkpoints and none verifies: starting over would bury them. Ranks hash the files together."""
    problems: list[str] = []
    names = ranks.share([path.name for path in listing(folder)] if ranks.main else None)
    assert isinstance(names, list)
    for name in reversed(names):
        path = folder / str(name)
        found = [wrong for wrong in ranks.gather(problem(path, ranks.rank, ranks.world)) if wrong is not None]
        if not found:
            return load(path, verify=False), problems
        problems.append(str(found[0]))
    if problems:
        raise InputError("no checkpoint can be read:\n  " + "\n  ".join(problems))
    return None, problems


def find(path: Path) -> Checkpoint:
    """The checkpoint `path`, or the newest one in the run folder `path`. InputError where there is none."""
    if not path.is_dir():
        raise InputError(f"{path}: no such run or checkpoint folder")
    if (path / MANIFEST).exists() or path.name.startswith(PREFIX):
        return load(path)
    found, _ = newest(path / "checkpoints")
    if found is None:
        raise InputError(f"{path}: no checkpoint in {path / 'checkpoints'}; train first")
    return found


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.from_json(_read(path / MANIFEST))
    except ValueError as error:
        raise InputError(f"{path / MANIFEST}: {error}; use another checkpoint") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; the checkpoint is incomplete, use an older one") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: {error}") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> Fact:
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(value, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return tensor_files.fact(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The generators that training could draw from, as tensors."""
    state = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`; a generator that was not saved (another kind of device) stays as it is."""
    torch.set_rng_state(state["random.cpu"])
    if device.type == "cuda" and "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"], device)
