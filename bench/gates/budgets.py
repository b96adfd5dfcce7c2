"""Recorded counts and what differs from them: a file per gate, an entry per workload, by the versions that matter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotplate.train.errors import InputError
from hotplate.train.resume import flatten
from hotplate.train.untrusted import read_object

FOLDER = Path(__file__).resolve().parent
Budget = dict[str, Any]  # of one workload: counts by name, nested where they have parts


def path_of(gate: str) -> Path:
    return FOLDER / f"{gate}.json"


def load(gate: str, folder: Path = FOLDER) -> dict[str, Any]:
    """{"versions": {...}, "workloads": {name: budget}}; empty where nothing is recorded. InputError for a damaged
    file."""
    path, tables = folder / f"{gate}.json", ("versions", "workloads")
    if not path.exists():
        return {name: {} for name in tables}
    mend = f"restore it: git checkout {path}"
    body = read_object(path, "recorded counts", mend)
    if not all(isinstance(body.get(name), dict) for name in tables):
        raise InputError(f"{path}: want objects {' and '.join(tables)}, got {sorted(body)}; {mend}")
    return body


def save(gate: str, versions: Mapping[str, str], workloads: Mapping[str, Budget], folder: Path = FOLDER) -> None:
    """A line per workload, so that a change shows as one."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(workloads[name])}" for name in sorted(workloads))
    text = f'{{\n "versions": {json.dumps(dict(versions))},\n "workloads": {{\n{lines}\n }}\n}}\n'
    (folder / f"{gate}.json").write_text(text, encoding="utf-8")


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any], margins: Mapping[str, float]) -> list[str]:
    """A line per count that is off its budget, to either side: "peak_bytes: 100 recorded, 120 now (+20.0%)".

    A count may be off by its margin, a fraction of the recorded one; without a margin it is exact.
    """
    before, now = flatten(recorded), flatten(found)
    lines = []
    for name in sorted(before | now):
        old, new = before.get(name) or 0, now.get(name) or 0
        if abs(new - old) > margins.get(name.split(".")[0], 0.0) * abs(old):
            change = f" ({(new - old) / old:+.1%})" if old else ""
            lines.append(f"{name}: {old} recorded, {new} now{change}")
    return lines
