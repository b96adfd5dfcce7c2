"""What a run will be, before anything is trained: sizes, memory, arithmetic, and what the budget buys."""

import resource
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hotplate.model.config import ModelConfig
from hotplate.model.cost import Cost, cost, device_peak_flops
from hotplate.train.budget import Budget, Growing, Plan, make_plan
from hotplate.train.config import TrainConfig
from hotplate.train.console import duration, quantity
from hotplate.train.errors import InputError
from hotplate.train.growing import final_model
from hotplate.train.published import reference_throughput
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision
from hotplate.train.throughput import measure
from hotplate.train.traffic import demand

MEASURE_SHARE = 0.05  # of a budget in time, at most
MEASURE_SECONDS = (3.0, 60.0)


@dataclass(frozen=True)
class Layout:
    """How one rank's rows of an update are cut into forward passes."""

    rows: range  # this rank's global rows
    micro_batches: int

    @property
    def micro_rows(self) -> int:
        return len(self.rows) // self.micro_batches

    def smaller(self) -> "Layout | None":
        """With micro-batches of at most half the rows; None when they have one row already."""
        sizes = [n for n in range(1, self.micro_rows // 2 + 1) if len(self.rows) % n == 0]
        return Layout(self.rows, len(self.rows) // sizes[-1]) if sizes else None


def lay_out(config: TrainConfig, ranks: Ranks) -> Layout:
    """Contiguous rows per rank, contiguous slices per micro-batch. InputError when they do not divide."""
    local = config.batch // ranks.world
    micro = min(config.micro_batch or local, local)
    if micro < 1 or local % micro:
        legal = [n for n in range(1, local + 1) if local % n == 0]
        raise InputError(f"--micro-batch {micro} does not divide the {local} rows of a rank; use one of {legal}")
    return Layout(range(ranks.rank * local, (ranks.rank + 1) * local), local // micro)


def plan_run(
    config: TrainConfig, ranks: Ranks, precision: Precision, layout: Layout, *, always_measure: bool = False
) -> Plan:
    """Steps and tokens of the run. A throughput is the given one, or the published one of the reference card, or it is
    measured when the budget is in time (or `always_measure`); in a run that grows, of both models."""
    budget = Budget.parse(config.budget)

    def speed(model: ModelConfig) -> float | None:
        if config.reference is not None and config.tokens_per_second is None:
            return reference_throughput(config.reference, model)
        if not always_measure and budget.unit != "seconds":
            return None
        return _measured(config, model, budget, ranks, precision, layout)

    growing = None
    if config.growth.at:
        growing = Growing(config.growth.at, speed(final_model(config)))
    first = speed(config.model) if config.tokens_per_second is None else config.tokens_per_second
    return make_plan(budget, config.batch * config.data.window, first, growing)


def _measured(
    config: TrainConfig, model: ModelConfig, budget: Budget, ranks: Ranks, precision: Precision, layout: Layout
) -> float:
    """Tokens/s of `model` here, timed for a small share of the budget."""
    shortest, longest = MEASURE_SECONDS
    share = MEASURE_SHARE * budget.amount / ranks.world if budget.unit == "seconds" else shortest
    return measure(
        model,
        config.optimizer,
        ranks,
        precision,
        config.execution,
        rows=layout.micro_rows,
        window=config.data.window,
        seconds=min(max(share, shortest), longest),
    ).tokens_per_second


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # estimate: what a forward pass keeps for the backward pass

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(config: TrainConfig, costs: Cost, precision: Precision, layout: Layout) -> Memory:
    """Weights, gradients and optimiser state exactly; activations as the tensors that eager autograd keeps."""
    model = config.model
    element = 4 if precision == "fp32" else 2
    weight = 2 if precision == "bf16" else 4
    master = 8 if precision == "bf16" else 0  # fp32 copy and its gradient
    tokens = layout.micro_rows * config.data.window
    mixer = model.mixer.width * (8 if model.recurrent else 6)
    per_layer = 6 * model.width + mixer + model.ffn * (4 if model.mlp == "swiglu" else 3)
    return Memory(
        weights=costs.parameters * weight,
        gradients=costs.parameters * weight,
        optimizer=costs.parameters * (8 + master),
        activations=tokens * element * (model.layers * per_layer + 4 * model.width),
    )


def out_of_memory(why: str, config: TrainConfig, model: ModelConfig, precision: Precision, layout: Layout) -> str:
    """What to say when the device's memory is full: what takes how much, and the next smaller micro-batch."""
    use = memory(replace(config, model=model), cost(model, config.data.window), precision, layout)
    parts = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in vars(use).items())
    smaller = [n for n in range(1, layout.micro_rows) if len(layout.rows) % n == 0]
    advice = (
        f"use --micro-batch {smaller[-1]} (now {layout.micro_rows}; the updates stay the same)"
        if smaller
        else "a micro-batch is one row already: use a shorter --data.window, a smaller model or more ranks"
    )
    return f"out of memory: {why}\n  estimated on a rank: {parts}\n  {advice}, or let --tune choose"


def checkpoint_bytes(costs: Cost, precision: Precision) -> int:
    """Weights, two moments, and master weights where they are separate."""
    return costs.parameters * (14 if precision == "bf16" else 12)


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_disk(folder: Path, config: TrainConfig, costs: Cost, precision: Precision) -> None:
    """InputError when the checkpoints that will be kept (one is written beside them) do not fit the disk."""
    needed, free = checkpoint_bytes(costs, precision) * (config.run.keep + 1), free_bytes(folder)
    if needed > free:
        raise InputError(
            f"{folder}: {config.run.keep + 1} checkpoints need {needed:,} bytes, {free:,} are free; "
            "free some space, lower --run.keep or choose another --run.folder"
        )


def describe(
    config: TrainConfig, ranks: Ranks, precision: Precision, layout: Layout, plan: Plan, folder: Path
) -> list[str]:
    """The dry run's lines."""
    model, window = config.model, config.data.window
    costs = cost(model, window)
    use = memory(config, costs, precision, layout)
    asked = demand(config, precision, ranks.world, layout.micro_batches)
    whole = plan.hours(plan.tokens)
    peak = device_peak_flops(ranks.device)
    lines = [
        f"model       {model.mixer.kind}, {model.layers} layers, width {model.width}, ffn {model.ffn}, "
        f"{model.mixer.heads} heads x {model.mixer.head_width}, vocabulary {model.vocab}, "
        f"positions {model.positions}",
        f"parameters  {costs.parameters:,} ({costs.embedding_parameters:,} in token and position tables and the head)",
        f"batch       {config.batch} rows x {window} = {plan.tokens_per_step:,} tokens an update; {ranks.world} ranks, "
        f"{layout.micro_batches} micro-batches of {layout.micro_rows} rows each",
        f"arithmetic  {quantity(costs.forward_flops)}FLOP a token forward, {quantity(costs.training_flops)}FLOP "
        "in training (causal attention, head counted, look-up not)",
        f"memory      {use.total / 2**30:.2f} GiB a rank: weights {use.weights / 2**30:.2f}, gradients "
        f"{use.gradients / 2**30:.2f}, optimiser {use.optimizer / 2**30:.2f}, "
        f"activations about {use.activations / 2**30:.2f}",
        f"precision   {precision} on {ranks.device}",
    ]
    if config.engine.kind != "ddp":
        total = asked.held + asked.gathered + use.activations
        lines[4] = (
            f"memory      {total / 2**30:.2f} GiB a rank: its shares {asked.held / 2**30:.2f}, gathered for a while "
            f"{asked.gathered / 2**30:.2f}, activations about {use.activations / 2**30:.2f}"
        )
    if ranks.world > 1 or config.engine.kind != "ddp":
        lines.append(
            f"traffic     {config.engine.kind}: each of {ranks.world} ranks sends {asked.sent / 2**20:,.2f} MiB "
            f"an update, {asked.between / 2**20:,.2f} of it between replicas"
        )
    if plan.tokens_per_second is not None:
        source = "measured here" if config.reference is None else f"published for {config.reference}"
        if config.tokens_per_second is not None:
            source = f"given for {config.reference or 'the reference'}"
        utilisation = "" if peak is None else f", mfu {plan.tokens_per_second * costs.training_flops / peak:.1%}"
        lines.append(f"throughput  {quantity(plan.tokens_per_second)} tok/s per accelerator ({source}{utilisation})")
    bought = f"{plan.steps:,} steps, {plan.tokens:,} tokens"
    if whole is not None:
        bought += f", {whole:.3g} protocol hours ({duration(whole * 3600 / ranks.world)} on {ranks.world} ranks)"
    lines.append(f"budget      {config.budget} buys {bought}")
    size, free = checkpoint_bytes(costs, precision) / 2**20, free_bytes(folder) / 2**30
    lines.append(f"checkpoints {size:,.0f} MiB each, {config.run.keep} kept; {free:,.1f} GiB free for {folder}")
    return lines


def used_memory_gib(device: torch.device) -> float:
    """Peak memory: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
