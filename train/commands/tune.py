"""`hotplate tune MODEL [flags]`: the fastest micro-batch of a training run on this machine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hotplate.train import console, settings
from hotplate.train.config import TrainConfig
from hotplate.train.ranks import start
from hotplate.train.science.batch_search import Search
from hotplate.train.tune import tune

DEFAULT = "demo"


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What to tune, and for how long."""

    seconds: float = 120.0
    """longest search"""
    refresh: bool = False
    """measure although the cache knows this model, machine and these versions"""
    json: str | None = None
    """also write everything to this file"""
    train: TrainConfig = field(default_factory=TrainConfig)


def main(arguments: Sequence[str]) -> int:
    """`hotplate tune gpt-small --train.batch 128`; training does the same with --tune."""
    preset, flags = settings.split_preset(arguments, DEFAULT)
    default = TuneConfig(train=settings.load_preset(preset))
    config = settings.parse(default, flags, f"hotplate tune {preset}")
    ranks = start(config.train)
    try:
        found = tune(preset, config.train, ranks, seconds=config.seconds, refresh=config.refresh)
    finally:
        ranks.close()
    _show(preset, found, config.train.batch // ranks.world)
    if config.json:
        Path(config.json).write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 0


def _show(preset: str, found: Search, update: int) -> None:
    console.table(
        f"{preset}: updates of {update} rows of {found.best.window} tokens on {found.environment['name']}",
        ["micro-batch", "accumulated", "tok/s", "peak MiB", ""],
        [
            [
                str(row.rows),
                str(update // row.rows),
                f"{row.tokens_per_second:,.0f}",
                "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
                "out of memory" if row.out_of_memory else "fastest" if row.rows == found.best.rows else "",
            ]
            for row in found.tried
        ],
    )
    console.say(f"--micro-batch {found.best.rows}")
