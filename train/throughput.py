"""Throughput as the protocol measures it: whole updates on random tokens, before training, under ideal load.

Languini Kitchen section 1.2: forward, loss, backward and optimiser step; warm-up excluded; data loading excluded.
"""

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train.config import ExecutionConfig, OptimizerConfig
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision, Step

WARMUP_STEPS = 2
TIMED_STEPS = 14  # the published tool keeps 14 samples
MINIMUM_STEPS = 3


@dataclass(frozen=True)
class Throughput:
    """Timed steps of one accelerator; rates come from the median."""

    tokens_per_step: int
    step_seconds: float  # median, of the slowest rank
    mean_seconds: float
    deviation_seconds: float
    samples: int
    model_bytes: int  # weights
    peak_bytes: int | None  # most memory in use: allocated on a GPU, resident in this process on a CPU

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.step_seconds


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
    execution: ExecutionConfig,
    *,
    rows: int,
    window: int,
    micro_batches: int = 1,
    seconds: float = math.inf,
) -> Throughput:
    """Time 14 updates of `micro_batches` x `rows` x `window` tokens on a model of its own, or fewer (at least three)
    when they take more than about `seconds`. The model that is trained later never sees it. Ranks measure at the same
    time and share the slowest rate."""
    alone = Ranks(0, 1, ranks.device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = LanguageModel.build(config, seed=0, device=ranks.device, dtype=dtype)
    model.execute(compiled=execution.compile, recompute=execution.recompute)
    reset_peak_memory(ranks.device)
    step = Step(model, Optimizer(model, optimizer), alone, precision, targets=micro_batches * rows * window)
    batch = random_batch(config, rows, window, ranks.device)
    states = [model.initial_state(rows) if batch.slots is not None else None] * micro_batches
    times: list[float] = []
    ranks.barrier()
    began = time.perf_counter()
    for index in range(WARMUP_STEPS + TIMED_STEPS):
        before = time.perf_counter()
        _, states = step([batch] * micro_batches, states, lr=0.0)
        _synchronise(ranks.device)
        if index >= WARMUP_STEPS:
            times.append(time.perf_counter() - before)
        if len(times) >= MINIMUM_STEPS and time.perf_counter() - began > seconds:
            break
    slowest = torch.tensor(statistics.median(times), device=ranks.device)
    if ranks.world > 1:
        torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
    return Throughput(
        tokens_per_step=micro_batches * rows * window,
        step_seconds=float(slowest.item()),
        mean_seconds=statistics.mean(times),
        deviation_seconds=statistics.stdev(times),
        samples=len(times),
        model_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        peak_bytes=peak_memory(ranks.device),
    )


def reset_peak_memory(device: torch.device) -> bool:
    """Start a new high-water mark of memory; False where that is not allowed: it is the process's highest then."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use since `reset_peak_memory`; None where the system does not say."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def resident_memory(device: torch.device) -> int | None:
    """Bytes in use now: allocated on a GPU, resident in this process on a CPU; None where the system does not say."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _status(field: str) -> int | None:
    """A size of this process, in bytes."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
