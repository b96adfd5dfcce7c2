"""`hotplate profile [PRESET] [flags]`: where the time of a training step goes.

Writes a Chrome trace (open it in Perfetto or chrome://tracing), a table of operations with their floors, and on CUDA a
snapshot of memory (open it at pytorch.org/memory_viz); prints the top of the table and the largest gaps in words.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hotplate.bench import gaps
from hotplate.bench.rates import measured_rates
from hotplate.model.cost import cost
from hotplate.model.lm import LanguageModel
from hotplate.train import console, settings
from hotplate.train.config import TrainConfig
from hotplate.train.environment import environment
from hotplate.train.optimizer import Optimizer
from hotplate.train.plan import lay_out
from hotplate.train.ranks import Ranks, start
from hotplate.train.step import Step, resolve_precision
from hotplate.train.throughput import random_batch

DEFAULT = "demo"
WARMUP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What to profile, and where the result goes."""

    steps: int = 3
    """profiled updates, after two that are not"""
    rows: int = 15
    """operations in the printed table"""
    out: str | None = None
    """folder for trace.json, operations.json; none = build/profile-<preset>-<date>-<time>"""
    train: TrainConfig = field(default_factory=TrainConfig)


def main(arguments: Sequence[str]) -> int:
    """`hotplate profile gpt-small --train.batch 8 --train.micro-batch 8`; updates of one micro-batch."""
    preset, flags = settings.split_preset(arguments, DEFAULT)
    default = ProfileConfig(train=settings.load_preset(preset))
    config = settings.parse(default, flags, f"hotplate profile {preset}")
    ranks = start(config.train)
    try:
        return _profile(config, preset, ranks)
    finally:
        ranks.close()


def _profile(config: ProfileConfig, preset: str, ranks: Ranks) -> int:
    train = config.train
    precision, rows = resolve_precision(train, ranks.device), lay_out(train, ranks).micro_rows
    out = Path(config.out or f"build/profile-{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    out.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = LanguageModel.build(train.model, train.seed, ranks.device, dtype)
    model.execute(compiled=train.execution.compile, recompute=train.execution.recompute)
    step = Step(model, Optimizer(model, train.optimizer), replace(ranks, world=1), precision, rows * train.data.window)
    batch = random_batch(train.model, rows, train.data.window, ranks.device)
    states = [model.initial_state(rows) if batch.slots is not None else None]

    def update() -> None:
        step([batch], states, train.optimizer.lr)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)

    for _ in range(WARMUP_STEPS):
        update()
    plain = time.perf_counter()
    for _ in range(config.steps):
        update()
    plain = (time.perf_counter() - plain) / config.steps
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ranks.device.type == "cuda" else [])]
    with profile(activities=activities, profile_memory=True, record_shapes=True) as found:
        for _ in range(config.steps):
            update()
    found.export_chrome_trace(str(out / "trace.json"))
    rates = measured_rates(ranks.device.type, dtype)
    operations = gaps.with_floors(_operations(found, config.steps, ranks.device.type), gaps.count(update, rates))
    snapshot = _memory_snapshot(update, out) if ranks.device.type == "cuda" else None
    flops = cost(train.model, train.data.window).training_flops * rows * train.data.window
    facts = {
        "preset": preset,
        "rows": rows,
        "window": train.data.window,
        "step_seconds": plain,
        "tokens_per_second": rows * train.data.window / plain,
        "flops_per_second": flops / plain,
        "environment": environment(ranks.device),
        "operations": operations,
        "gaps": gaps.in_words(operations, 1e3 * plain),
    }
    (out / "operations.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _show(facts, config.rows)
    console.say(f"trace       {out / 'trace.json'}\noperations  {out / 'operations.json'}")
    if snapshot is not None:
        console.say(f"memory      {snapshot}")
    return 0


def _memory_snapshot(update: Callable[[], None], out: Path) -> Path:
    """Every allocation of one update, with its stack."""
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    try:
        update()
        torch.cuda.memory._dump_snapshot(str(out / "memory.pickle"))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return out / "memory.pickle"


def _operations(found: Any, steps: int, device: str) -> list[dict[str, Any]]:
    """Operations by the time spent in themselves, largest first, per step."""
    rows = []
    for event in found.key_averages():
        microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if microseconds > 0:
            memory = event.self_device_memory_usage if device == "cuda" else event.self_cpu_memory_usage
            rows.append(
                {
                    "name": event.key,
                    "calls": event.count / steps,
                    "milliseconds": microseconds / 1e3 / steps,
                    "allocated_bytes": max(0, memory) / steps,
                }
            )
    return sorted(rows, key=lambda row: -row["milliseconds"])


def _show(facts: dict[str, Any], count: int) -> None:
    total = sum(row["milliseconds"] for row in facts["operations"])
    rows = [
        [
            row["name"],
            f"{row['milliseconds']:.2f}",
            f"{row['milliseconds'] / total:.1%}",
            f"{row['calls']:.0f}",
            "" if row["floor_ms"] is None else f"{row['floor_ms']:.2f}",
            f"{row['allocated_bytes'] / 2**20:.1f}",
        ]
        for row in facts["operations"][:count]
    ]
    title = (
        f"{facts['preset']}: {facts['step_seconds'] * 1e3:.1f} ms a step, "
        f"{console.quantity(facts['tokens_per_second'])} tok/s, {console.quantity(facts['flops_per_second'])}FLOP/s"
    )
    console.table(title, ["operation, per step", "ms", "share", "calls", "floor ms", "MiB"], rows)
    console.say("\n".join(["largest gaps", *facts["gaps"]]))
