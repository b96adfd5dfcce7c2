"""Result files: a row per provider and case, with the machine behind it, one file per machine and date."""

import json
import os
import statistics
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from hotplate.bench.harness import Case, dtype_name, floor_ms
from hotplate.bench.rates import measured_rates
from hotplate.bench.timing import Samples
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One provider on one case; None where not measured or not defined."""

    bench: str
    case: str
    provider: str
    device: str
    dtype: str
    ms_median: float
    ms_p20: float
    ms_p80: float
    cpu_ms_median: float | None  # processor time of the process, blind to neighbours on the machine
    floor_ms: float | None
    max_err: float
    floor_share: float | None = None  # of the speed of light: floor_ms / ms_median
    bytes_per_s: float | None = None  # the least traffic over the time
    flops_per_s: float | None = None
    tokens_per_s: float | None = None
    mtokens_per_hour: float | None = None  # whole steps: million tokens per accelerator-hour
    host_ms: float | None = None  # GPU: what a call takes until all is asked of it
    peak_bytes: int | None = None  # above the start of a call: allocated on a GPU, resident on a CPU

    @property
    def key(self) -> tuple[str, str, str]:
        """The work, whoever does it."""
        return self.bench, self.case, self.dtype

    @property
    def steady_ms(self) -> float:
        """Processor time where there is one, as neighbours on the machine do not count in it."""
        return self.ms_median if self.cpu_ms_median is None else self.cpu_ms_median


def row(case: Case, provider: str, samples: Samples) -> Row:
    """The samples in the units that its fields say."""
    fifths = statistics.quantiles(samples.wall, n=5, method="inclusive")
    median = statistics.median(samples.wall)
    least = floor_ms(case, measured_rates(case.device, case.dtype))
    tokens = None if case.tokens is None else 1e3 * case.tokens / median
    return Row(
        bench=case.bench,
        case=case.name,
        provider=provider,
        device=case.device,
        dtype=dtype_name(case.dtype),
        ms_median=median,
        ms_p20=fifths[0],
        ms_p80=fifths[3],
        cpu_ms_median=statistics.median(samples.busy) if samples.busy else None,
        floor_ms=least,
        max_err=samples.error,
        floor_share=None if least is None else least / median,
        bytes_per_s=None if case.moved_bytes is None else 1e3 * case.moved_bytes / median,
        flops_per_s=None if case.flops is None else 1e3 * case.flops / median,
        tokens_per_s=tokens,
        mtokens_per_hour=tokens * 3600 / 1e6 if tokens is not None and case.bench == "step" else None,
        host_ms=samples.host_ms,
        peak_bytes=samples.peak_bytes,
    )


def path_for(record: Mapping[str, object], folder: Path = FOLDER) -> Path:
    """<folder>/<machine>-<date>.json"""
    words = "".join(c if c.isalnum() else " " for c in str(record["name"])).lower().split()
    return folder / f"{'-'.join(words)}-{str(record['date'])[:10]}.json"


def record(device: str) -> dict[str, object]:
    """The machine, the revision and the rates behind the floors."""
    return {**environment(torch.device(device)), "rates_float32": asdict(measured_rates(device, torch.float32))}


def write(path: Path, rows: Iterable[Row], machine: Mapping[str, object]) -> None:
    """{"machine": {...}, "rows": [...]}; keys of a row are the fields of Row. All at once, in place of what was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"machine": dict(machine), "rows": [asdict(row) for row in rows]}
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def want_same(path: Path, machine: Mapping[str, Any]) -> None:
    """InputError where another machine, revision or version of a package made the rows of a result file."""
    before, _ = read(path)
    if differs := [name for name in ("name", "device", "revision", "versions") if before.get(name) != machine[name]]:
        raise InputError(f"{path}: its rows were made with another {differs[0]}; name a new file, or leave out --add")


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Machine and rows of a result file. InputError when it is none."""
    known = {field.name for field in fields(Row)}
    kinds = {name: kind if kind is str else kind | int for name, kind in typing.get_type_hints(Row).items()}
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
        rows = [Row(**{key: value for key, value in dict(values).items() if key in known}) for values in body["rows"]]
        if wrong := [name for row in rows for name, kind in kinds.items() if not isinstance(getattr(row, name), kind)]:
            raise TypeError(f"another kind of value: {wrong[0]}")
        return dict(body["machine"]), rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result file of hotplate bench: {error}") from error
