"""Where metrics go: always metrics.jsonl, and optionally TensorBoard or Weights & Biases.

A sink that fails (full disk, no network) never stops training: it says so once and is dropped.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

Record = Mapping[str, Any]


class Sink(Protocol):
    """Takes one flat record per report."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, flushed line by line."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        """On resume, records after `resume_step` are dropped: those steps are about to be done again."""
        if resume_step is not None and path.exists():
            kept = [line for line in read_records(path) if line["step"] <= resume_step]
            content = path.read_bytes()
            if len(kept) < content.count(b"\n") or (content and not content.endswith(b"\n")):
                fresh = path.with_suffix(".tmp")
                fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
                os.replace(fresh, path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars by step."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--run.sinks tensorboard: the package is missing; pip install 'hotplate[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One run per run folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InputError("--run.sinks wandb: the package is missing; pip install 'hotplate[wandb]'") from error
        self._run = wandb.init(project="hotplate", name=folder.name, dir=str(folder), config=dict(config))

    def write(self, record: Record) -> None:
        self._run.log(dict(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """All sinks of a run."""

    def __init__(self, sinks: Sequence[Sink], say: Callable[[str], None]) -> None:
        self._sinks = list(sinks)
        self._say = say

    def write(self, record: Record) -> None:
        self._each("write", record)

    def close(self) -> None:
        self._each("close")

    def _each(self, action: str, *arguments: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, action)(*arguments)
            except Exception as error:  # a third-party writer may raise anything; the run must outlive it
                self._sinks.remove(sink)
                self._say(f"warning: {type(sink).__name__} stopped taking metrics: {error}; training goes on")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line cut by a crash is left out. InputError where the file cannot be read."""
    records = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot read the records of a run: {error.strerror}") from error
    for line in text.splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
