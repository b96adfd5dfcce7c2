"""Why one measurement is slower than another: two result files row by row, or two profiles operation by operation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotplate.bench import results
from hotplate.bench.results import Row
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

LONGEST_MS = 1e9  # of an operation in a step; more is no measurement


@dataclass(frozen=True)
class Change:
    """One row or operation in both; times in milliseconds, None where it is only in the other."""

    name: str
    before: float | None
    after: float | None
    noisy: bool  # the spreads of both overlap

    @property
    def ratio(self) -> float | None:
        return None if self.before is None or self.after is None or not self.before else self.after / self.before

    @property
    def added(self) -> float:
        return (self.after or 0.0) - (self.before or 0.0)


def of_rows(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """Rows by what they add, largest first. A change is noise where the intervals p20..p80 of both share a point."""

    def named(rows: Sequence[Row]) -> dict[str, Row]:
        return {f"{row.bench} {row.case} {row.dtype}: {row.provider}": row for row in rows}

    old, new = named(before), named(after)
    changes = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        noisy = a is not None and b is not None and a.ms_p20 <= b.ms_p80 and b.ms_p20 <= a.ms_p80
        was, now = (None if row is None else row.ms_median for row in (a, b))
        changes.append(Change(name, was, now, noisy))
    return sorted(changes, key=lambda change: -change.added)


def of_operations(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[Change]:
    """Operations of two profiles by what they add to a step; a profile holds no spread."""
    old, new = ({row["name"]: float(row["milliseconds"]) for row in rows} for rows in (before, after))
    changes = [Change(name, old.get(name), new.get(name), False) for name in dict.fromkeys([*old, *new])]
    return sorted(changes, key=lambda change: -change.added)


def load(path: Path) -> tuple[str, list[Row] | list[dict[str, Any]]]:
    """("rows", rows) of a result file, ("operations", rows) of a profile's operations.json. InputError otherwise."""
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a result file or profile: {error}") from error
    if isinstance(body, dict) and isinstance(body.get("operations"), list):
        for row in body["operations"]:
            named = isinstance(row, dict) and isinstance(row.get("name"), str)
            time = row.get("milliseconds") if named else None
            if not isinstance(time, int | float) or not 0 <= time <= LONGEST_MS:
                raise InputError(f"{path}: want operations with name and milliseconds, got {str(row)[:80]}")
        return "operations", body["operations"]
    return "rows", results.read(path)[1]


def changes(before: Path, after: Path) -> list[Change]:
    """InputError when one is a profile and the other is not."""
    (kind, old), (other, new) = load(before), load(after)
    if kind != other:
        raise InputError(f"{before} holds {kind}, {after} {other}: compare two of a kind")
    return of_operations(old, new) if kind == "operations" else of_rows(old, new)  # type: ignore[arg-type]
