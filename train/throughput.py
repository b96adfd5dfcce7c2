"""Throughput as the protocol measures it: whole updates on random tokens, before training, under ideal load.

Languini Kitchen section 1.2: forward, loss, backward and optimiser step; warm-up excluded; data loading excluded.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train.config import OptimizerConfig
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision, Step

WARMUP_STEPS = 2
TIMED_STEPS = 14  # the published tool keeps 14 samples
MINIMUM_STEPS = 3


@dataclass(frozen=True)
class Throughput:
    """Median over the timed steps, per accelerator."""

    tokens_per_second: float
    step_seconds: float
    samples: int
    tokens_per_step: int


def random_batch(config: ModelConfig, rows: int, window: int, device: torch.device, seed: int = 0) -> Batch:
    """Uniformly random tokens, every target scored; row r continues state r when the model is recurrent."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.vocab, (rows, window + 1), generator=generator)
    batch = Batch(
        tokens=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        weights=torch.ones(rows, window),
        positions=torch.arange(window).repeat(rows, 1),
        target_bytes=torch.zeros(rows, window, dtype=torch.int32),
        slots=torch.arange(rows) if config.recurrent else None,
    )
    return batch.to(device)


def measure(
    config: ModelConfig,
    optimizer: OptimizerConfig,
    ranks: Ranks,
    precision: Precision,
    *,
    rows: int,
    window: int,
    seconds: float,
) -> Throughput:
    """Time updates of `rows` x `window` tokens on a model of its own, for at most about `seconds` (at least three
    steps). The model that is trained later never sees it. Ranks measure at the same time and share the slowest rate."""
    alone = Ranks(0, 1, ranks.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = LanguageModel.build(config, seed=0, device=ranks.device, dtype=dtype)
    step = Step(model, Optimizer(model, optimizer), alone, precision, targets=rows * window)
    batch = random_batch(config, rows, window, ranks.device)
    states = [model.initial_state(rows) if batch.slots is not None else None]
    times: list[float] = []
    ranks.barrier()
    began = time.perf_counter()
    for index in range(WARMUP_STEPS + TIMED_STEPS):
        before = time.perf_counter()
        _, states = step([batch], states, lr=0.0)
        _synchronise(ranks.device)
        if index >= WARMUP_STEPS:
            times.append(time.perf_counter() - before)
        if len(times) >= MINIMUM_STEPS and time.perf_counter() - began > seconds:
            break
    slowest = torch.tensor(statistics.median(times), device=ranks.device)
    if ranks.world > 1:
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    step_seconds = float(slowest.item())
    return Throughput(rows * window / step_seconds, step_seconds, len(times), rows * window)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
