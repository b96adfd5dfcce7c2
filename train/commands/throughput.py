"""`hotplate throughput MODEL... [flags]`: tokens/s as the protocol measures them, and what a compute class buys."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hotplate.train import console, settings
from hotplate.train.budget import Budget
from hotplate.train.config import ExecutionConfig
from hotplate.train.errors import InputError
from hotplate.train.published import throughputs
from hotplate.train.ranks import start
from hotplate.train.science.batch_search import Row, Search, search


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig:
    """Whole updates on random tokens: forward, loss, backward, optimiser step; warm-up excluded, median of 14."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """presets or .toml files (see hotplate train --presets)"""
    classes: tuple[str, ...] = ("6h", "12h", "24h", "48h", "96h")
    """compute classes whose tokens are shown"""
    reference: str | None = None
    """show the published throughputs of this card instead of measuring, e.g. "RTX 3090" """
    limit: int = 256
    """most rows of a batch"""
    seconds: float = 120.0
    """longest search per model; the best batch is then timed in full"""
    refresh: bool = False
    """measure although the cache knows this model, machine and these versions"""
    window: int | None = None
    """tokens of a row; none = the preset's"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16-autocast", "bf16"] = "auto"
    threads: int | None = None
    """cpu threads; none = all cores"""
    json: str | None = None
    """also write everything to this file"""
    csv: str | None = None
    """also write one line per batch tried to this file"""


def main(arguments: Sequence[str]) -> int:
    """`hotplate throughput gpt-mini qlstm-mini --csv throughput.csv`."""
    config = settings.parse(ThroughputConfig(), arguments, "hotplate throughput")
    budgets = {text: Budget.parse(text) for text in config.classes}
    if timeless := [text for text, budget in budgets.items() if budget.unit != "seconds"]:
        raise InputError(f"--classes {timeless[0]}: want accelerator time, like 6h or 20m")
    if config.reference is not None:
        return _show_published(config, budgets)
    if not config.models:
        raise InputError("hotplate throughput: want one or more models; e.g. hotplate throughput gpt-mini qlstm-mini")
    if config.limit < 1 or config.seconds <= 0:
        raise InputError(f"--limit {config.limit} --seconds {config.seconds:g}: want both above zero")
    presets = {name: settings.load_preset(name) for name in config.models}  # all names are known before any is timed
    found = {}
    for name, preset in presets.items():
        data = dataclasses.replace(preset.data, window=config.window or preset.data.window)
        train = dataclasses.replace(
            preset,
            data=data,
            device=config.device,
            precision=config.precision,
            execution=ExecutionConfig(threads=config.threads),
        )
        ranks = start(train)
        try:
            found[name] = search(name, train, ranks, limit=config.limit, seconds=config.seconds, refresh=config.refresh)
        finally:
            ranks.close()
    _show(found, budgets)
    _write(found, config)
    return 0


def _show(found: dict[str, Search], budgets: dict[str, Budget]) -> None:
    rows = []
    for name, result in found.items():
        row = result.best
        deviation = 100 * (row.deviation_step_ms or 0.0) / (row.mean_step_ms or 1.0)
        rows.append(
            [
                name,
                f"{row.tokens_per_second:,.0f}",
                str(row.rows),
                f"{row.median_step_ms:,.1f} ±{deviation:.0f}%",
                "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
                console.quantity(row.training_flops_per_token),
                "" if row.mfu_causal is None else f"{row.mfu_causal:.1%}",
                *(console.quantity(row.tokens_per_second * budget.amount) for budget in budgets.values()),
            ]
        )
    first = next(iter(found.values()))
    columns = ["model", "tok/s", "rows", "ms a step", "peak MiB", "FLOP/tok", "mfu_causal", *budgets]
    title = (
        f"throughput on {first.environment['name']}, {first.best.precision}, windows of {first.best.window}; "
        "under each class: tokens that it buys"
    )
    console.table(title, columns, rows)


def _show_published(config: ThroughputConfig, budgets: dict[str, Budget]) -> int:
    card, rows = throughputs(str(config.reference))
    if unknown := [name for name in config.models if name not in rows]:
        raise InputError(f"--reference {card}: nothing published of {unknown[0]}; there are {', '.join(rows)}")
    console.table(
        f"published throughput on the {card}, best batch; under each class: tokens that it buys",
        ["model", "tok/s", "rows", *budgets],
        [
            [
                name,
                f"{speed:,.0f}",
                str(batch),
                *(console.quantity(speed * budget.amount) for budget in budgets.values()),
            ]
            for name, (speed, batch) in rows.items()
            if not config.models or name in config.models
        ],
    )
    return 0


def _write(found: dict[str, Search], config: ThroughputConfig) -> None:
    if config.json:
        text = json.dumps({name: result.to_dict() for name, result in found.items()}, indent=1)
        Path(config.json).write_text(text + "\n", encoding="utf-8")
    if config.csv:
        names = [field.name for field in dataclasses.fields(Row)]
        with Path(config.csv).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*names[:5], "best", *names[5:]])
            writer.writeheader()
            for result in found.values():
                for row in result.tried:
                    final = row.rows == result.best.rows
                    writer.writerow({**dataclasses.asdict(result.best if final else row), "best": final})
