"""`hotplate tune MODEL [flags]`: the fastest micro-batch and execution of a training run on this machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hotplate.train import console, settings
from hotplate.train.config import ExecutionConfig, TrainConfig
from hotplate.train.ranks import start
from hotplate.train.science.batch_search import Search
from hotplate.train.tune import tune

DEFAULT = "demo"


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What to tune, and for how long."""

    seconds: float = 120.0
    """longest search"""
    try_compile: bool = True
    """try blocks through torch.compile too; compiling is not in `seconds`"""
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
        found = tune(
            preset, config.train, ranks, seconds=config.seconds, refresh=config.refresh, compiled=config.try_compile
        )
    finally:
        ranks.close()
    for way, search in found.searches:
        _show(preset, way, search, config.train.batch // ranks.world)
    way, search = found.best
    console.say(" ".join([f"--micro-batch {search.best.rows}", *_flags(way)]))
    if config.json:
        table = [{"execution": asdict(way), **search.to_dict()} for way, search in found.searches]
        Path(config.json).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def _flags(way: ExecutionConfig) -> list[str]:
    return [f"--{name}" for name in ("compile", "recompute") if getattr(way, name)]


def _show(preset: str, way: ExecutionConfig, found: Search, update: int) -> None:
    name = " ".join([preset, *_flags(way)])
    console.table(
        f"{name}: updates of {update} rows of {found.best.window} tokens on {found.environment['name']}",
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
