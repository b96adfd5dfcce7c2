"""The vocabulary of documents that hold both text and units, and how any data set's vocabulary is opened.

V text ids come first, then K units, then two markers, one of which opens every segment. Text keeps the ids that a text
model knows; D is the text tokenizer's.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.data.units import FILE as UNITS_FILE
from hotplate.train.data.units import UnitDescription, UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

FILE = "mixed.json"
FORMAT = "hotplate-mixed-1"

Modality = Literal["text", "speech"]


@dataclass(frozen=True)
class Segment:
    """Either text or units."""

    text: str = ""
    units: np.ndarray | None = None


class MixedTokenizer:
    """Ids of text, of units and of the markers, with the surface of `Tokenizer`.

    As text, a segment of units is "<speech> 3 49 7" and text after it begins with "<text>". A unit counts as one byte
    and one character, a marker as none.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, description: UnitDescription):
        self.path, self.tokenizer, self.description = path, tokenizer, description
        self.eod, self.text_ids, self.units = tokenizer.eod, tokenizer.vocab, description.units
        self.vocab = tokenizer.vocab + description.units + 2
        both = f"{tokenizer.fingerprint} {tokenizer.eod} {description.fingerprint}"
        self.fingerprint = hashlib.sha256(both.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "MixedTokenizer":
        """From the file that `write` made, and the two that it names. InputError for anything else."""
        path = Path(path)
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            tokenizer = Tokenizer.load(path.parent / Path(content["tokenizer"]).name, int(content["eod"]))
        except OSError as error:
            raise InputError(f"{path}: cannot read the vocabulary: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path}: not a vocabulary of text and units: {error!r}; make the data again") from error
        return cls(path, tokenizer, UnitDescription.read(path.parent / UNITS_FILE))

    @classmethod
    def write(cls, folder: Path, tokenizer: Tokenizer, description: UnitDescription) -> "MixedTokenizer":
        """The vocabulary in `folder`, with copies of what it is made of."""
        copy = folder / ("tokenizer.json" if tokenizer.path.suffix == ".json" else "tokenizer.model")
        copy.write_bytes(tokenizer.path.read_bytes())
        description.write(folder)
        content = {"format": FORMAT, "tokenizer": copy.name, "eod": tokenizer.eod}
        (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
        return cls.load(folder / FILE)

    def marker(self, modality: Modality) -> int:
        return self.text_ids + self.units + (modality == "text")

    def range_of(self, modality: Modality) -> tuple[int, int]:
        """[first, last) of the ids of text or of units, without D and the markers."""
        return (0, self.text_ids) if modality == "text" else (self.text_ids, self.text_ids + self.units)

    def allowed(self, modality: Modality) -> np.ndarray:
        """bool [V + K + 2]: the ids of one modality and D."""
        first, last = self.range_of(modality)
        mask = np.zeros(self.vocab, bool)
        mask[first:last] = mask[self.eod] = True
        return mask

    def turn(self, ids: Sequence[int], modality: Modality) -> list[int]:
        """`ids`, and the marker of `modality` where their last segment is of the other, or there is none."""
        markers = (self.marker("text"), self.marker("speech"))
        last = next((i for i in reversed(ids) if i in markers), None)
        return [*ids] if last == self.marker(modality) else [*ids, self.marker(modality)]

    def segment(self, segment: Segment) -> np.ndarray:
        """int64 ids of a segment without its marker."""
        if segment.units is None:
            return self.tokenizer.encode(segment.text)
        return segment.units.astype(np.int64) + self.text_ids

    def join(self, segments: Sequence[Segment]) -> np.ndarray:
        """int64 ids of a document, without D: a marker at the start and at every switch."""
        parts = [np.zeros(0, np.int64)]
        for segment in segments:
            parts += [
                np.array([self.marker("text" if segment.units is None else "speech")]),
                self.segment(segment),
            ]
        return np.concatenate(parts)

    def encode(self, text: str) -> np.ndarray:
        """int64 ids of text with "<speech> 3 49 7" and "<text>" in it. InputError for a unit that is none."""
        units = UnitTokenizer(self.path, self.description)
        parts = re.split(r" ?<(speech|text)>", text)
        segments = [Segment(text=parts[0])] if parts[0] else []
        for modality, content in zip(parts[1::2], parts[2::2], strict=True):
            spoken = modality == "speech"
            segments.append(Segment(units=units.units_of(units.encode(content))) if spoken else Segment(text=content))
        return self.join(segments)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, with units as numbers after <speech>."""
        found = np.asarray(list(ids), np.int64)
        if found.size and not 0 <= found.min() <= found.max() < self.vocab:
            raise ValueError(f"decode: want ids in [0, {self.vocab}), got {found.min()} to {found.max()}")
        made, spoken = "", False
        kinds = np.where(found < self.text_ids, 0, np.where(found < self.text_ids + self.units, 1, found))
        for kind, group in groupby(range(len(found)), key=lambda i: int(kinds[i])):
            part = found[list(group)]
            if kind == 0:
                made += self.tokenizer.decode(part.tolist())
            elif kind == 1:
                made += "" if spoken else " <speech>"
                made += "".join(f" {unit}" for unit in (part - self.text_ids).tolist())
            else:
                made += " <speech>" if kind == self.marker("speech") else " <text>" if made else ""
            spoken = kind == self.marker("speech") or (spoken and kind == 1)
        return made

    def byte_lengths(self) -> np.ndarray:
        """int32 [V + K + 2]: bytes of text, 1 for a unit, 0 for D and the markers."""
        return self._lengths(self.tokenizer.byte_lengths())

    def character_lengths(self) -> np.ndarray:
        """int32 [V + K + 2]."""
        return self._lengths(self.tokenizer.character_lengths())

    def _lengths(self, text: np.ndarray) -> np.ndarray:
        return np.concatenate([text, np.ones(self.units), np.zeros(2)]).astype(np.int32)


AnyTokenizer = Tokenizer | UnitTokenizer | MixedTokenizer


def open_tokenizer(path: Path, eod: int) -> AnyTokenizer:
    """A data set's tokenizer, by the name of its file: units.json, mixed.json, else text."""
    if path.name == UNITS_FILE:
        return UnitTokenizer.load(path)
    return MixedTokenizer.load(path) if path.name == FILE else Tokenizer.load(path, eod)
