"""Units on disk: a folder with units.json and shards of utterances, each shard complete or absent.

A shard is a safetensors file: units and durations uint16 [all], offsets int64 [utterances + 1]; names, seconds and the
fingerprint are in its header.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hotplate.train.data.units import FILE, UnitDescription
from hotplate.train.errors import InputError
from hotplate.train.speech.encoder import Units
from hotplate.train.untrusted import parse_json

PATTERN = "units-*.safetensors"


class Utterance(NamedTuple):
    """`name` is the file, with `#start-stop` in seconds where it was cut."""

    name: str
    units: np.ndarray
    durations: np.ndarray


@dataclass(frozen=True)
class UnitFolder:
    """A folder of units of one description."""

    path: Path
    description: UnitDescription

    @classmethod
    def create(cls, path: Path, description: UnitDescription) -> "UnitFolder":
        """Make the folder, or go on with one of the same units. InputError if it holds other units."""
        if (path / FILE).exists():
            found = cls.open(path)
            description.check_same(found.description, str(path))
            return found
        try:
            path.mkdir(parents=True, exist_ok=True)
            description.write(path)
        except OSError as error:
            raise InputError(f"{path}: cannot write there: {error.strerror}") from error
        return cls(path, description)

    @classmethod
    def open(cls, path: Path) -> "UnitFolder":
        return cls(path, UnitDescription.read(path / FILE))

    def shards(self) -> list[Path]:
        return sorted(self.path.glob(PATTERN))

    def done(self) -> set[str]:
        """Names of the audio files whose units are complete here."""
        return {file for shard in self.shards() for file in self._listed(shard, "files")}

    def write(self, label: str, files: list[str], utterances: list[tuple[str, Units]]) -> Path:
        """A new shard with the units of all parts of `files`; `label` keeps writers of one folder apart."""
        number = sum(1 for _ in self.path.glob(f"units-{label}-*.safetensors"))
        path = self.path / f"units-{label}-{number:05d}.safetensors"
        units = [each.units for _, each in utterances]
        empty = np.zeros(0, np.uint16)
        tensors = {
            "units": np.concatenate([empty, *units]),
            "durations": np.concatenate([empty, *(each.durations for _, each in utterances)]),
            "offsets": np.cumsum([0, *map(len, units)], dtype=np.int64),
        }
        names = [name for name, _ in utterances]
        partial = path.with_name(f".{path.name}.partial")
        header = {"fingerprint": self.description.fingerprint, "names": json.dumps(names), "files": json.dumps(files)}
        try:
            save_file(tensors, partial, header)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"{path}: cannot write the units: {error}") from error
        return path

    def utterances(self) -> Iterator[Utterance]:
        """All utterances, shard by shard. InputError: a damaged shard, other units, a unit outside the codebook."""
        for shard in self.shards():
            names = self._listed(shard, "names")
            try:
                with safe_open(shard, framework="numpy") as file:
                    units, durations, offsets = (file.get_tensor(name) for name in ("units", "durations", "offsets"))
            except (OSError, SafetensorError) as error:
                raise InputError(f"{shard}: damaged: {error}; delete it and encode again") from error
            right = units.dtype == durations.dtype == np.uint16 and units.ndim == durations.ndim == offsets.ndim == 1
            whole = right and offsets.dtype == np.int64 and len(offsets) == len(names) + 1 and offsets[0] == 0
            whole = whole and len(units) == len(durations) == offsets[-1] and (np.diff(offsets) >= 0).all()
            if not whole or units.size and units.max() >= self.description.units:
                raise InputError(f"{shard}: damaged: lengths or units are impossible; delete it and encode again")
            for name, start, stop in zip(names, offsets[:-1], offsets[1:], strict=True):
                yield Utterance(name, units[start:stop], durations[start:stop])

    def _listed(self, shard: Path, key: str) -> list[str]:
        """The names under `key` in the shard's header."""
        header = self._header(shard)
        try:
            found = parse_json(header[key])
        except (KeyError, ValueError) as error:
            raise InputError(f"{shard}: damaged: no {key} in its header; delete it and encode again") from error
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise InputError(f"{shard}: damaged: {key} are no list of names; delete it and encode again")
        return found

    def _header(self, shard: Path) -> dict[str, str]:
        try:
            with safe_open(shard, framework="numpy") as file:
                header = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{shard}: cannot read the units: {error}; delete it and encode again") from error
        if header.get("fingerprint") != self.description.fingerprint:
            raise InputError(
                f"{shard}: its units have fingerprint {header.get('fingerprint', 'none')[:16]}, "
                f"{self.path / FILE} {self.description.fingerprint[:16]}; delete it and encode again"
            )
        return header
