"""JSON and TOML from files that may be anything: damaged, huge, or made to hurt."""

import json
import math
import tomllib
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


def read_amounts(path: Path, what: str, unit: str, mend: str) -> dict[str, float]:
    """Finite amounts above 0 by name, from a file as `read_object` takes it. InputError for anything else."""
    amounts = read_object(path, what, mend)
    for name, amount in amounts.items():
        if not isinstance(amount, float | int) or isinstance(amount, bool) or not 0 < amount < math.inf:
            raise InputError(f"{path}: {name}: want {unit} above 0, got {amount!r}; {mend}")
    return amounts


def read_toml(path: Path, mend: str = "correct it") -> dict[str, Any]:
    """The tables in a TOML file. InputError says why it is none, and how to `mend` that."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}; {mend}") from error
