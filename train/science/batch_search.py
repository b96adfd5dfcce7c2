"""Throughputs of a model on this machine: the best batch, or micro-batch, found by a bounded search, kept in a cache.

Batches double from one row; micro-batches are the divisors of an update's rows. The search ends when a batch does not
fit (an allocation fails, or on a CPU the estimate exceeds the free memory, since the kernel would kill the process
instead), when two in a row are no faster than the best so far, at the last size, or when its time is spent. The batch
with the most measured tokens/s wins, not the largest that fits; the protocol's is timed again in full.
"""

import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hotplate.kernels.native.build import cache_folder
from hotplate.model.cost import cost, device_peak_flops
from hotplate.train import console
from hotplate.train.config import TrainConfig
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.plan import Layout, memory
from hotplate.train.ranks import Ranks
from hotplate.train.settings import merge
from hotplate.train.step import resolve_precision
from hotplate.train.throughput import TIMED_STEPS, Throughput, measure
from hotplate.train.untrusted import parse_json

PATIENCE = 2  # larger batches in a row that are no faster
PROBE_SECONDS = 10.0  # of timed steps per batch while searching
USABLE = 0.8  # of a CPU's free memory
MOST_MICRO_BATCHES = 4  # of an update that stands for longer ones: the optimiser's share is small from there on


@dataclass(frozen=True, kw_only=True)
class Row:
    """One batch size, in the columns of the published throughput tables."""

    model: str
    device: str
    precision: str
    rows: int
    window: int
    parameters: int
    non_embedding_parameters: int
    training_flops_per_token: int
    model_mib: float | None = None
    peak_mib: float | None = None
    mean_step_ms: float | None = None
    deviation_step_ms: float | None = None
    median_step_ms: float | None = None
    steps_per_second: float | None = None
    samples: int = 0
    micro_batches: int = 1  # accumulated in the updates that were timed
    tokens_per_second: float = 0.0
    mfu_causal: float | None = None
    out_of_memory: bool = False

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batches * self.rows * self.window


@dataclass(frozen=True, kw_only=True)
class Search:
    """All batches tried, the best first measured in full, and where it was done."""

    best: Row
    tried: tuple[Row, ...]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"best": asdict(self.best), "tried": [asdict(row) for row in self.tried], "machine": self.environment}


def search(name: str, config: TrainConfig, ranks: Ranks, *, limit: int, seconds: float, refresh: bool) -> Search:
    """The protocol's throughput: one micro-batch of up to `limit` rows is an update. The cached result for this model,
    machine and versions, or a new one. InputError when not one row fits."""
    sizes = [1 << n for n in range(limit.bit_length())]
    return _search(name, config, ranks, sizes, None, seconds, refresh)


def search_micro_batch(
    name: str, config: TrainConfig, ranks: Ranks, *, update: int, seconds: float, refresh: bool
) -> Search:
    """The micro-batch for updates of `update` rows on one rank, accumulated; cached likewise."""
    sizes = [rows for rows in range(1, update + 1) if update % rows == 0]
    return _search(name, config, ranks, sizes, update, seconds, refresh)


def _search(
    name: str,
    config: TrainConfig,
    ranks: Ranks,
    sizes: Sequence[int],
    update: int | None,
    seconds: float,
    refresh: bool,
) -> Search:
    facts = environment(ranks.device)
    path = _cache_path(config, facts, sizes[-1], update)
    if path.is_file() and not refresh and (kept := read_kept(path)) is not None:
        return kept

    def attempt(rows: int, most: float) -> Row:
        micro_batches = 1 if update is None else min(MOST_MICRO_BATCHES, update // rows)
        row = try_rows(name, config, ranks, rows, most, micro_batches)
        if ranks.main:  # a search may take minutes
            told = "no room" if row.out_of_memory else f"{row.tokens_per_second:,.0f} tok/s"
            console.complain(f"{name}: {rows} x {config.data.window} tokens a pass: {told}")
        return row

    tried = _climb(attempt, sizes, ends=time.monotonic() + seconds)
    best = max(tried, key=lambda row: row.tokens_per_second)
    if best.out_of_memory:
        raise InputError(f"{name}: not even one row of {config.data.window} tokens fits the memory; shorten the window")
    if update is None and best.samples < TIMED_STEPS:
        best = attempt(best.rows, math.inf)
    found = Search(best=best, tried=tuple(tried), environment=facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
    return found


def _climb(attempt: Callable[[int, float], Row], sizes: Sequence[int], *, ends: float) -> list[Row]:
    """Sizes in rising order until the search ends (see the module)."""
    tried: list[Row] = []
    best, slower = 0.0, 0
    for rows in sizes:
        if slower >= PATIENCE or (tried and time.monotonic() >= ends):
            break
        row = attempt(rows, PROBE_SECONDS)
        tried.append(row)
        if row.out_of_memory:
            break
        slower = 0 if row.tokens_per_second > best else slower + 1
        best = max(best, row.tokens_per_second)
    return tried


def try_rows(name: str, config: TrainConfig, ranks: Ranks, rows: int, seconds: float, micro_batches: int = 1) -> Row:
    """Measure one size of a forward pass; a row that says so when it does not fit."""
    precision, window = resolve_precision(config, ranks.device), config.data.window
    costs = cost(config.model, window)
    row = Row(
        model=name,
        device=str(environment(ranks.device)["name"]),
        precision=precision,
        rows=rows,
        window=window,
        parameters=costs.parameters,
        non_embedding_parameters=costs.parameters - costs.embedding_parameters,
        training_flops_per_token=costs.training_flops,
        micro_batches=micro_batches,
    )
    needed = memory(replace(config, batch=rows), costs, precision, Layout(range(rows), 1)).total
    if ranks.device.type == "cpu" and needed > USABLE * _free_memory():
        return replace(row, out_of_memory=True)
    try:
        found = measure(
            config.model,
            config.optimizer,
            ranks,
            precision,
            config.execution,
            rows=rows,
            window=window,
            micro_batches=micro_batches,
            seconds=seconds,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        return replace(row, out_of_memory=True)
    return _filled(row, found, device_peak_flops(ranks.device))


def _filled(row: Row, found: Throughput, peak: float | None) -> Row:
    speed = found.tokens_per_second
    return replace(
        row,
        model_mib=found.model_bytes / 2**20,
        peak_mib=None if found.peak_bytes is None else found.peak_bytes / 2**20,
        mean_step_ms=found.mean_seconds * 1e3,
        deviation_step_ms=found.deviation_seconds * 1e3,
        median_step_ms=found.step_seconds * 1e3,
        steps_per_second=1 / found.step_seconds,
        samples=found.samples,
        tokens_per_second=speed,
        mfu_causal=None if peak is None else speed * row.training_flops_per_token / peak,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or a CPU."""
    told = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in told


def _free_memory() -> float:
    """Bytes that a CPU process can still get; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return math.inf
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")), math.inf)


def _cache_path(config: TrainConfig, facts: dict[str, Any], limit: int, update: int | None) -> Path:
    told = {key: facts[key] for key in ("name", "device", "threads", "versions", "revision", "cpu_capability", "cuda")}
    optimizer = asdict(config.optimizer) | {"lr": None}  # the rate changes no time
    key = [
        asdict(config.model),
        optimizer,
        config.data.window,
        config.precision,
        [config.execution.compile, config.execution.recompute],
        limit,
        update,
        told,
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder().parent / "throughput" / f"{digest}.json"


def read_kept(path: Path) -> Search | None:
    """A kept result; None when it cannot be read, and is made again."""
    blank = Row(
        model="", device="", precision="", rows=0, window=0, parameters=0, non_embedding_parameters=0,
        training_flops_per_token=0,
    )  # fmt: skip
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        best, *tried = (merge(blank, row, str(path)) for row in (values["best"], *values["tried"]))
        machine = dict(values["machine"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None
    return Search(best=best, tried=tuple(tried), environment=machine) if best.rows > 0 and tried else None
