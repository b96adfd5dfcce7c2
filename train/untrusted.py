"""JSON from files that may be anything: damaged, huge, or made to hurt."""

import json
from pathlib import Path
from typing import Any

from hotplate.train.errors import InputError

MOST_BYTES = 1 << 26  # of a description that is read whole: a data set of a million shards fits


def plain_name(name: str) -> bool:
    """Whether it can be a file's name in a folder and nothing else: no path, no longer than file systems take."""
    return name.isprintable() and Path(name).name == name and name not in ("", "..") and len(name.encode()) <= 255


def parse_json(text: str | bytes) -> Any:
    """The value. ValueError for everything that is none: nesting and numbers beyond Python's limits included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(path: Path, what: str, mend: str, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes. InputError names the file, `what` it should be, why it is not,
    and how to `mend` that."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read {what}: {error.strerror}") from error
    if len(content) > most:
        raise InputError(f"{path}: more than {most:,} bytes are not {what}; {mend}")
    try:
        value = parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; {mend}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not {what}: want a JSON object, got {type(value).__name__}; {mend}")
    return value
