"""Preference triplets as units: what preference optimisation reads.

A line holds the input's fields (paths, texts, speaker) and prompt, chosen and rejected, each an object with units and
durations. The first line is {"fingerprint": ..., "units": K}.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotplate.train.errors import InputError
from hotplate.train.speech.audio import read_audio
from hotplate.train.speech.encoder import UnitEncoder
from hotplate.train.speech.synthesis import PREFERENCES
from hotplate.train.untrusted import parse_json

PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Encoded:
    """How many triplets a file got, and why others were left out."""

    written: int
    failed: list[str]


def read_triplets(path: Path) -> list[tuple[dict[str, Any], dict[str, Path]]]:
    """Line by line: its object, and the audio files of prompt, chosen and rejected. InputError for what is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the triplets: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            found.append((row, {part: path.parent / row[f"{part}_path"] for part in PARTS}))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: want an object with {PARTS} and _path: {error!r}") from error
    return found


def encode_preferences(folder: Path, out: Path, encoder: UnitEncoder, resample: bool = False) -> Encoded:
    """Write the triplets of folder/preferences.jsonl with their units to `out`; one with a bad file is left out.

    Paths in it are relative to the folder. InputError: a line that is no triplet, or none that can be used.
    """
    path = folder / PREFERENCES
    made = [json.dumps({"fingerprint": encoder.description.fingerprint, "units": encoder.description.units})]
    failed: list[str] = []
    for number, (row, files) in enumerate(read_triplets(path), 1):
        try:
            for part, file in files.items():
                units, durations = encoder.encode_one(read_audio(file, encoder.features.sample_rate, resample))
                row[part] = {"units": units.tolist(), "durations": durations.tolist()}
        except InputError as error:
            failed.append(f"{path}, line {number}: {error}")
            continue
        made.append(json.dumps(row))
    if len(made) == 1:
        raise InputError(failed[0] if failed else f"{path}: holds no triplet")
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("\n".join(made) + "\n", encoding="utf-8")
    partial.replace(out)
    return Encoded(len(made) - 1, failed)
