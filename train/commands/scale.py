"""`hotplate scale MODEL`: what more ranks ask of each, by engine; with --measure, what they give on this machine."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from hotplate.train import console, settings
from hotplate.train.config import EngineConfig, TrainConfig
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.sinks import read_records
from hotplate.train.step import Precision
from hotplate.train.traffic import demand

ENGINES: dict[str, EngineConfig] = {
    "ddp": EngineConfig(),
    "fsdp": EngineConfig(kind="fsdp"),
    "zero 1": EngineConfig(kind="deepspeed", zero=1),
    "zero 2": EngineConfig(kind="deepspeed", zero=2),
    "zero 3": EngineConfig(kind="deepspeed", zero=3),
}
MAIN = Path(__file__).resolve().parents[1] / "main.py"


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Which engines, over how many ranks."""

    ranks: tuple[int, ...] = (8, 64, 1024)
    """numbers of ranks"""
    engines: tuple[str, ...] = tuple(ENGINES)
    """ddp, fsdp, zero 1, zero 2, zero 3; fsdp over more than `group` ranks is also shown hybrid"""
    group: int = 8
    """ranks of a node, within which hybrid sharding stays"""
    link: float = 50e9
    """bytes/s that a rank can send to other nodes"""
    micro_batches: int = 1
    """per rank and update"""
    measure: bool = False
    """train here at each number of ranks, with the same global batch"""
    steps: int = 24
    """updates of a measured run; the first half is not counted"""
    json: str | None = None
    """also write everything to this file"""
    train: TrainConfig = field(default_factory=TrainConfig)


def main(arguments: Sequence[str]) -> int:
    """`hotplate scale gpt-xl --ranks 8 64 1024`; `hotplate scale gpt-nano --measure --ranks 1 2 4`."""
    preset, flags = settings.split_preset(arguments, "demo")
    default = ScaleConfig(train=settings.load_preset(preset))
    config = settings.parse(default, flags, f"hotplate scale {preset}")
    wrong = [*sorted(set(config.engines) - set(ENGINES)), *(str(n) for n in config.ranks if n < 1)]
    if wrong:
        raise InputError(f"hotplate scale: want engines of {', '.join(ENGINES)} and ranks of at least 1, got {wrong}")
    pairs = [(name, ranks) for name in config.engines for ranks in config.ranks]
    rows = [_measured(preset, config, *pair) for pair in pairs] if config.measure else []
    planned = [] if config.measure else _planned(config)
    if planned:
        _show(preset, config, planned)
    if rows:
        console.table(
            f"{preset}: updates of {config.train.batch} rows of {config.train.data.window} tokens, all ranks here",
            ["engine", "ranks", "tok/s", "last loss"],
            [[r["engine"], str(r["ranks"]), f"{r['tokens_per_second']:,.0f}", f"{r['loss']:.7f}"] for r in rows],
        )
    if config.json:
        facts = {**environment(torch.device("cpu")), "preset": preset, "planned": planned, "measured": rows}
        Path(config.json).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def _planned(config: ScaleConfig) -> list[dict[str, Any]]:
    precision: Precision = "bf16" if config.train.precision == "auto" else config.train.precision
    rows = []
    for name in config.engines:
        for ranks in config.ranks:
            kinds = {name: ENGINES[name]}
            if name == "fsdp" and ranks > config.group and ranks % config.group == 0:
                kinds["hybrid"] = replace(ENGINES[name], replicas=ranks // config.group)
            for label, engine in kinds.items():
                found = demand(replace(config.train, engine=engine), precision, ranks, config.micro_batches)
                out = found.between if engine.replicas > 1 else found.sent if ranks > config.group else 0
                facts = {"held": found.held, "gathered": found.gathered, "sent": found.sent, "out_of_node": out}
                rows.append({"engine": label, "ranks": ranks, "precision": precision, **facts})
    return rows


def _show(preset: str, config: ScaleConfig, rows: list[dict[str, Any]]) -> None:
    console.table(
        f"{preset}: per rank, {config.micro_batches} micro-batches an update; seconds of what leaves a node "
        f"of {config.group}, at {config.link:.3g} bytes/s and rank, none of it behind computation",
        ["engine", "ranks", "held GiB", "gathered", "sent an update", "out of the node", "seconds"],
        [
            [
                row["engine"],
                f"{row['ranks']:,}",
                f"{row['held'] / 2**30:.2f}",
                f"{row['gathered'] / 2**30:.2f}",
                f"{row['sent'] / 2**30:.2f}",
                f"{row['out_of_node'] / 2**30:.2f}",
                f"{row['out_of_node'] / config.link:.3f}",
            ]
            for row in rows
        ],
    )


def _measured(preset: str, config: ScaleConfig, name: str, ranks: int) -> dict[str, Any]:
    """A run of its own processes. InputError with its last lines where it fails."""
    engine = ENGINES[name]
    with tempfile.TemporaryDirectory() as folder:
        table = settings.to_table(replace(config.train, engine=engine, budget=f"{config.steps}steps"))
        table["run"] |= {"folder": f"{folder}/run", "log_steps": 1}
        table["evaluation"] |= {"every": 0.0, "splits": [], "sample_tokens": 0}
        path = Path(folder) / "run.toml"
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launch, str(MAIN), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise InputError(f"hotplate scale: {name} on {ranks} ranks failed:\n{(done.stdout + done.stderr)[-2000:]}")
        records = [r for r in read_records(Path(folder) / "run" / "metrics.jsonl") if "loss" in r]
    speeds = [record["tokens_per_second"] for record in records[len(records) // 2 :]]
    facts = {"tokens_per_second": statistics.median(speeds), "loss": records[-1]["loss"]}
    return {"engine": name, "ranks": ranks, **facts}
