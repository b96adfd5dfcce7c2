"""Discrete speech units as tokens: what made them, and the vocabulary that the shards use.

K units give K + 2 ids: pad 0, begin and end of an utterance 1 (the data set's D), unit u is id u + 2.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotplate.train.errors import InputError
from hotplate.train.untrusted import read_object

FILE = "units.json"
FORMAT = "hotplate-units-1"
PAD, BOUNDARY, FIRST_UNIT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class UnitDescription:
    """Everything that decides which units a waveform gets.

    `fingerprint` is the SHA-256 over all of it: two files of units mean the same only if it is the same.
    """

    backend: str
    units: int
    unit_seconds: float
    sample_rate: int
    weights_sha256: str  # of the encoder's weights; empty where it has none
    codebook_sha256: str  # of the centroids
    options: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """`units.json` in `folder`, under its name only when complete."""
        content = {"format": FORMAT, "fingerprint": self.fingerprint, **asdict(self)}
        partial = folder / f".{FILE}.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def read(cls, path: Path) -> "UnitDescription":
        """Raises InputError: unreadable, not a description, or its fingerprint is not that of its fields."""
        content = read_object(path, "the description of the units", "encode the audio again")
        try:
            if content.pop("format") != FORMAT:
                raise InputError(f"{path}: not of format {FORMAT}; encode the audio again")
            recorded = content.pop("fingerprint")
            description = cls(**content)
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: not a description of units: {error}; encode the audio again") from error
        if recorded != description.fingerprint:
            raise InputError(
                f"{path}: was edited: its fields hash to {description.fingerprint[:16]}, recorded {str(recorded)[:16]}"
            )
        return description

    def check_same(self, other: "UnitDescription", where: str) -> None:
        """InputError, naming the first field that differs, unless `other` are the same units."""
        if self.fingerprint == other.fingerprint:
            return
        mine, theirs = asdict(self), asdict(other)
        field = next(name for name in mine if mine[name] != theirs[name])
        raise InputError(
            f"{where}: other units: fingerprint {other.fingerprint[:16]}, want {self.fingerprint[:16]} "
            f"({field} {theirs[field]!r}, want {mine[field]!r}); encode all audio with one backend and codebook"
        )


class UnitTokenizer:
    """The vocabulary of a data set of units, with the surface of `Tokenizer`.

    A unit counts as one byte and one character, the boundary as none: "bits per byte" of such a data set are bits per
    unit, and times `units_per_second` of its manifest bits per second. As text, units are decimal numbers.
    """

    eod = BOUNDARY

    def __init__(self, path: Path, description: UnitDescription):
        self.path, self.description = path, description
        self.vocab = FIRST_UNIT + description.units
        self.fingerprint = description.fingerprint

    @classmethod
    def load(cls, path: str | Path) -> "UnitTokenizer":
        return cls(Path(path), UnitDescription.read(Path(path)))

    def encode(self, text: str) -> np.ndarray:
        """int64 ids of units written as numbers, "3 49 7". InputError for anything else."""
        words = text.split()
        if wrong := [word for word in words if not word.isdecimal() or int(word) >= self.description.units]:
            raise InputError(f"units: want numbers below {self.description.units}, got {wrong[0]!r}")
        return np.array([int(word) for word in words], np.int64) + FIRST_UNIT

    def decode(self, ids: Iterable[int]) -> str:
        """The units of `ids` as numbers; pad and boundary give nothing."""
        return " ".join(str(unit) for unit in self.units_of(ids).tolist())

    def units_of(self, ids: Iterable[int]) -> np.ndarray:
        """int64 units of `ids`, without pad and boundary."""
        found = np.asarray(list(ids), np.int64)
        if found.size and not 0 <= found.min() <= found.max() < self.vocab:
            raise ValueError(f"units_of: want ids in [0, {self.vocab}), got {found.min()} to {found.max()}")
        return found[found >= FIRST_UNIT] - FIRST_UNIT

    def byte_lengths(self) -> np.ndarray:
        """int32 [V]: 1 for a unit, 0 for pad and boundary."""
        return (np.arange(self.vocab) >= FIRST_UNIT).astype(np.int32)

    def character_lengths(self) -> np.ndarray:
        """int32 [V]: the same as the bytes."""
        return self.byte_lengths()
