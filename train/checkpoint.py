"""Checkpoints: a folder per step that is complete or not there at all.

    checkpoints/step-00000120/
        model.safetensors       weights
        optimizer.safetensors   moments, master weights
        state.safetensors       recurrent state of all rows, random generators
        trainer.json            step, tokens, meters, plan, fingerprints, resolved config
        manifest.json           bytes and sha256 of each file above: written last

Files are written into a temporary folder, flushed to the disk, and renamed as one. A folder without a manifest, or
whose files differ from it, is never loaded. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hotplate.train.errors import InputError

PREFIX = "step-"
TEMPORARY = ".writing-"
MANIFEST = "manifest.json"
TENSOR_FILES = ("model", "optimizer", "state")
MANIFEST_BYTES = 1 << 20  # a manifest is a page of text; more is not ours


@dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint in memory."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Tensor]
    trainer: dict[str, Any]


def step_of(path: Path) -> int:
    """120 for step-00000120."""
    return int(path.name.removeprefix(PREFIX))


def listing(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir()]
    return sorted(found, key=step_of)


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], trainer: Mapping[str, Any]) -> Path:
    """Commit one checkpoint and return its path; an existing one of the same step is kept as it is.

    OSError (full disk, no permission) leaves the older checkpoints untouched and no temporary folder behind.
    """
    final = folder / f"{PREFIX}{step:08d}"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        write(final, tensors, trainer)
    return final


def write(final: Path, tensors: Mapping[str, Mapping[str, Tensor]], trainer: Mapping[str, Any]) -> None:
    """The checkpoint folder `final`, which must not exist, complete or not at all. OSError as for `save`."""
    temporary = final.with_name(f"{TEMPORARY}{final.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for name in TENSOR_FILES:
            unshared = {key: value.detach().to("cpu").contiguous() for key, value in tensors[name].items()}
            safetensors.torch.save_file(unshared, temporary / f"{name}.safetensors")
        _write_json(temporary / "trainer.json", trainer)
        files = sorted(path for path in temporary.iterdir())
        _write_json(temporary / MANIFEST, {path.name: _fact(path) for path in files})
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        temporary.rename(final)
        _flush(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def prune(folder: Path, keep: int) -> None:
    """Remove the oldest checkpoints beyond `keep` (at least one stays). Renamed first, so that a kill half-way
    leaves no folder that looks whole."""
    for path in listing(folder)[: -max(1, keep)]:
        doomed = path.with_name(f"{TEMPORARY}old-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clean(folder: Path) -> list[Path]:
    """Remove what a killed process left half-written; the run folder's lock makes sure that nobody is writing it."""
    stale = list(folder.glob(f"{TEMPORARY}*"))
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return stale


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. InputError names the file that is missing, short, foreign or changed."""
    manifest_path = path / MANIFEST
    manifest = _read_json(manifest_path)
    wanted = {f"{name}.safetensors" for name in TENSOR_FILES} | {"trainer.json"}
    if set(manifest) != wanted:
        raise InputError(f"{manifest_path}: want entries {sorted(wanted)}, got {sorted(manifest)[:8]}")
    for name, fact in manifest.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise InputError(f"{file}: missing, or not a regular file; the checkpoint is incomplete, use an older one")
        if (found := _fact(file)) != fact:
            raise InputError(
                f"{file}: damaged: the manifest says {fact}, the file has {found}; use an older checkpoint"
            )
    parts = {name: _load_tensors(path / f"{name}.safetensors") for name in TENSOR_FILES}
    return Checkpoint(path, parts["model"], parts["optimizer"], parts["state"], _read_json(path / "trainer.json"))


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones. InputError when there are
    checkpoints and none verifies: starting over would bury them."""
    problems: list[str] = []
    for path in reversed(listing(folder)):
        try:
            return load(path), problems
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("no checkpoint can be read:\n  " + "\n  ".join(problems))
    return None, problems


def find(path: Path) -> Checkpoint:
    """The checkpoint `path`, or the newest one in the run folder `path`. InputError where there is none."""
    if not path.is_dir():
        raise InputError(f"{path}: no such run or checkpoint folder")
    if (path / MANIFEST).exists():
        return load(path)
    found, _ = newest(path / "checkpoints")
    if found is None:
        raise InputError(f"{path}: no checkpoint in {path / 'checkpoints'}; train first")
    return found


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error


def _fact(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MANIFEST_BYTES + 1)
        value = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; the checkpoint is incomplete, use an older one") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if len(text) > MANIFEST_BYTES or not isinstance(value, dict):
        raise InputError(f"{path}: not a checkpoint's JSON")
    return value


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
