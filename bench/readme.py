"""The README's performance table, written from the result files: between two marks, and nowhere by hand."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hotplate.bench import results
from hotplate.bench.results import Row
from hotplate.train.errors import InputError

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- performance: made by `hotplate bench readme` -->", "<!-- end of performance -->"
OURS = "hotplate"  # the first provider of a whole step


def newest(folder: Path = results.FOLDER) -> list[tuple[Path, dict[str, Any], list[Row]]]:
    """Of every machine and device, the newest result file that has whole steps."""
    found: dict[tuple[str, str], tuple[Path, dict[str, Any], list[Row]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            machine, rows = results.read(path)
        except InputError:
            continue  # of another command
        steps = [row for row in rows if row.bench == "step"]
        key = str(machine["name"]), str(machine["device"])
        if steps and (key not in found or str(found[key][1]["date"]) < str(machine["date"])):
            found[key] = path, machine, steps
    return list(found.values())


def section(folder: Path = results.FOLDER, root: Path = README.parent) -> str:
    """A table per machine, marks included."""
    return "\n".join([BEGIN, *(_table(*one, root) for one in newest(folder)), END])


def _table(path: Path, machine: Mapping[str, Any], rows: Sequence[Row], root: Path) -> str:
    cpu = machine["device"] == "cpu"
    where = f"{machine['threads']} of {machine['cores']} cores of {machine['name']}" if cpu else str(machine["name"])
    clock = "processor time" if cpu else "device time"
    link = Path(os.path.relpath(path, root)).as_posix()
    lines = [
        "",
        f"Whole training steps on {where}, {str(machine['date'])[:10]}; {clock}, medians of rounds in turns\n"
        f"([result file]({link})):",
        "",
        "| model, batch | dtype | hotplate | tokens/s | of the floor | beside it, in multiples of hotplate's time |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for key in dict.fromkeys(row.key for row in rows):
        case = {row.provider: row for row in rows if row.key == key}
        if OURS not in case:
            continue
        ours = case.pop(OURS)
        speed = "" if ours.tokens_per_s is None else f"{ours.tokens_per_s * ours.ms_median / ours.steady_ms:,.0f}"
        share = "" if ours.floor_ms is None else f"{ours.floor_ms / ours.steady_ms:.0%}"
        peers = ", ".join(f"{name} {row.steady_ms / ours.steady_ms:.2f}" for name, row in case.items())
        lines.append(f"| {ours.case} | {ours.dtype} | {ours.steady_ms:,.0f} ms | {speed} | {share} | {peers} |")
    return "\n".join([*lines, ""])


def rewritten(text: str, made: str) -> str:
    """`text` with the section replaced. InputError when it lacks the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"README: wants the marks {BEGIN} and {END} around the performance tables")
    return before + made + after
