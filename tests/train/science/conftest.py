"""Folders of finished runs, written and not trained: what the trainer leaves behind, with chosen numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from hotplate.train.config import TrainConfig
from hotplate.train.settings import load_preset, to_table

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function (preset, hours, value, seed, **changes) -> run folder of a run that scored `value` per byte."""

    def make(
        preset: str = "gpt-nano",
        hours: float | None = 1.0,
        value: float = 3.0,
        seed: int = 0,
        *,
        targets: int = 1000,
        size: int = 3000,
        name: str = "Some CPU",
        reference: str | None = None,
        speed: float = 1000.0,
    ) -> Path:
        folder = tmp_path / "runs" / preset / f"{hours}-{seed}"
        folder.mkdir(parents=True)
        config: TrainConfig = replace(load_preset(preset), seed=seed, reference=reference)
        tokens = round((hours or 1.0) * 3600 * speed)
        split = {
            "normalised_perplexity": value,
            "bits_per_byte": 1.5,
            "loss": 4.0,
            "top1_accuracy": 0.2,
            "targets": targets,
            "bytes": size,
        }
        paid = {"train": 80.0, "evaluate": 15.0, "start-up": 5.0}
        summary = {
            "tokens": tokens,
            "protocol_hours": hours,
            "paid_hours": 100 / 3600,
            "paid_seconds": paid,
            "goodput": 0.8,
            "budget": f"{hours}h",
            "splits": {"test": split},
        }
        machine = {
            "name": name,
            "cores": 2,
            "threads": 2,
            "versions": {"torch": "2.13.0"},
            "python": "3.11",
            "revision": "abc",
            "command": "main.py <b>",
            "plan": {"tokens_per_second": None if hours is None else speed},
        }
        records = [
            {"step": n, "tokens": tokens * n / 4, "loss": 6 / n, "tokens_per_accelerator_hour": 3.3e6}
            for n in range(1, 5)
        ]
        (folder / "config.toml").write_text(tomli_w.dumps({"preset": preset, **to_table(config)}))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "environment.json").write_text(json.dumps(machine))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return make


@pytest.fixture
def study(make_run: MakeRun, tmp_path: Path) -> Path:
    """Two families at three classes with two seeds: the quasi-LSTM starts behind and falls faster."""
    for preset, start, exponent in (("gpt-nano", 3.0, -0.1), ("qlstm-nano", 3.3, -0.15)):
        for hours in (1.0, 2.0, 4.0):
            for seed in (0, 1):
                make_run(preset, hours, start * hours**exponent * (1 + 0.002 * (-1) ** seed), seed)
    return tmp_path / "runs"
