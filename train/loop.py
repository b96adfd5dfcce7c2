"""The training loop: batches in, updates, and at the moments the budget sets, reports, validations and checkpoints."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hotplate.model.batch import Batch
from hotplate.model.cost import Cost
from hotplate.model.state import State
from hotplate.train.budget import Goodput, Plan
from hotplate.train.config import TrainConfig
from hotplate.train.data.loader import Loader
from hotplate.train.errors import InputError
from hotplate.train.guard import StopSignal
from hotplate.train.plan import used_memory_gib
from hotplate.train.ranks import Ranks
from hotplate.train.step import NoRoom, Step, Update


@dataclass(frozen=True)
class Course:
    """What is fixed before the first update."""

    config: TrainConfig
    plan: Plan
    costs: Cost
    peak_flops: float | None  # of the device; None when it is not known
    until: int  # the step that this part of the plan ends with
    rate: Callable[[int], float]  # learning rate of an update, as a fraction of the peak


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint must bring back besides tensors of model and optimiser."""

    step: int = 0  # updates done
    skipped: int = 0  # of these, not applied: their gradients were not finite, or the loss was a spike
    states: list[State | None] = field(default_factory=list)  # carried state per micro-batch of this rank


@dataclass(frozen=True)
class Oddity:
    """An update that was not like the others."""

    step: int  # 0-based: what the batch was made from
    skipped: bool
    loss: float
    norm: float

    @property
    def reason(self) -> str:
        return "loss spike" if math.isfinite(self.loss) and math.isfinite(self.norm) else "not finite"


@dataclass(frozen=True)
class Hooks:
    """What the loop asks for at its moments; each is a call of one line."""

    report: Callable[[dict[str, Any]], None]
    odd: Callable[[Sequence[Oddity]], None]
    smaller: Callable[[str, Progress], int]  # why there was no room; more micro-batches than before, states cut alike
    validate: Callable[[], Mapping[str, float]]
    save: Callable[[Progress], None]


class Meter:
    """Sums between two reports, kept on the device: reading them is the loop's only synchronisation."""

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        self.names = names  # of the objective's further sums
        # loss, targets, bytes, skipped updates, norm, and those sums
        self.sums = torch.zeros(5 + len(names), dtype=torch.float64, device=device)
        self.streak = torch.zeros((), device=device)  # skipped updates in a row
        self.each: list[Tensor] = []  # fp32 [4] of every update: skipped, spike, loss, norm
        self.updates = 0
        self._began = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block is not time between reports."""
        before = time.monotonic()
        yield
        self._began += time.monotonic() - before

    def add(self, update: Update) -> None:
        norm = torch.where(update.skipped > 0, 0.0, update.norm)
        kept = [update.loss_sum, update.weight_sum, update.byte_sum, update.skipped, norm]
        finite = torch.cat([torch.stack(kept), update.details]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.sums += finite
        self.streak = (self.streak + 1) * update.skipped
        self.each.append(torch.stack([update.skipped, update.spike.float(), update.loss, update.norm]))
        self.updates += 1

    def odd(self, done: int) -> list[Oddity]:
        """The updates since the last reading that were skipped or spikes, when `done` updates are done in all. The
        same on every rank."""
        rows = torch.stack(self.each).tolist()
        first = done - len(rows)
        self.each = []
        return [
            Oddity(first + index, bool(skipped), loss, norm)
            for index, (skipped, spike, loss, norm) in enumerate(rows)
            if skipped or spike
        ]

    def read(self, ranks: Ranks) -> tuple[list[float], dict[str, float], float]:
        """([nats, targets, bytes, skipped updates, mean norm], further means, seconds) over all ranks since the last
        reading."""
        sums: Tensor = ranks.sum(self.sums)
        nats, targets, size, skipped, norm, *further = sums.tolist()
        means = {name: value / targets for name, value in zip(self.names, further, strict=True) if targets}
        applied = max(1.0, self.updates - skipped / ranks.world)
        seconds = time.monotonic() - self._began
        self.sums = torch.zeros_like(sums)
        self.updates, self._began = 0, time.monotonic()
        return [nats, targets, size, skipped / ranks.world, norm / ranks.world / applied], means, seconds


def due(fraction: float, step: int, plan: Plan) -> bool:
    """Whether step `step` (1-based, just done) is the first at or past a multiple of `fraction` of the budget."""
    if fraction <= 0:
        return False
    return int(plan.spent(step) / fraction + 1e-9) > int(plan.spent(step - 1) / fraction + 1e-9)


def train(
    course: Course,
    step_fn: Step,
    loader: Loader,
    progress: Progress,
    ranks: Ranks,
    goodput: Goodput,
    stop: StopSignal,
    hooks: Hooks,
) -> bool:
    """Run updates until `course.until` (True) or until a signal asks to stop (False). `progress` is kept current.

    InputError when too many updates in a row were not finite; the last good state has been saved by then.
    """
    config, plan = course.config, course.plan
    meter = Meter(ranks.device, step_fn.objective.names)
    waited, saved_at = loader.wait_seconds, time.monotonic()
    goodput.switch("train")
    for step, batches in loader:
        lr = config.optimizer.lr * course.rate(step)
        update, progress.states = _fitting(step_fn, loader, progress, batches, lr, hooks)
        meter.add(update)
        progress.step = step + 1
        stopping, late = ranks.any(stop.name is not None, time.monotonic() - saved_at > config.run.checkpoint_seconds)
        last = progress.step == course.until
        record: dict[str, Any] | None = None
        if progress.step % config.run.log_steps == 0 or progress.step == 1 or last or stopping:
            updates = meter.updates
            sums, means, seconds = meter.read(ranks)
            progress.skipped += round(sums[3])
            wait, waited = loader.wait_seconds - waited, loader.wait_seconds
            record = {**_record(course, progress, updates, sums, seconds, wait, lr, ranks, goodput), **means}
            streak = int(meter.streak.item())
            if odd := meter.odd(progress.step):
                hooks.odd(odd)
        if due(config.evaluation.every, progress.step, plan):
            with goodput.during("evaluate"), meter.paused():
                record = {**(record or position(progress, plan)), **hooks.validate()}
        if record is not None:
            hooks.report(record)
            if "loss" in record and streak >= config.optimizer.max_skipped > 0:
                hooks.save(progress)
                raise InputError(
                    f"step {progress.step}: the last {streak} updates had non-finite gradients or losses that policy "
                    "skips, and were skipped; weights are as they were before; lower --optimizer.lr, raise the "
                    "warm-up, or check the data: their batches are in the run folder's skipped/"
                )
        if due(config.run.checkpoint_every, progress.step, plan) or late or last or stopping:
            with goodput.during("save"), meter.paused():
                hooks.save(progress)
            saved_at = time.monotonic()
        if stopping or last:
            return last
    return progress.step >= course.until


def _fitting(
    step_fn: Step, loader: Loader, progress: Progress, batches: list[Batch], lr: float, hooks: Hooks
) -> tuple[Update, list[State | None]]:
    """The update, from as many micro-batches as it takes to fit the memory of all ranks."""
    while True:
        try:
            return step_fn(batches, progress.states, lr)
        except NoRoom as error:
            why = str(error)
        batches = loader.recut(progress.step, hooks.smaller(why, progress))


def position(progress: Progress, plan: Plan) -> dict[str, Any]:
    """Where in the budget a record stands."""
    tokens = progress.step * plan.tokens_per_step
    return {
        "step": progress.step,
        "tokens": tokens,
        "budget_spent": plan.spent(progress.step),
        "protocol_hours": plan.hours(tokens),
        "budget_hours": plan.hours(plan.tokens),
    }


def _record(
    course: Course,
    progress: Progress,
    updates: int,
    sums: list[float],
    seconds: float,
    wait: float,
    lr: float,
    ranks: Ranks,
    goodput: Goodput,
) -> dict[str, Any]:
    """A flat record of the steps since the last one, in the units its names say."""
    nats, targets, size, _, norm = sums
    speed = updates * course.plan.tokens_per_step / seconds
    each = speed / ranks.world
    return {
        **position(progress, course.plan),
        "loss": nats / targets if targets else None,  # nothing finite was scored
        "bits_per_byte": nats / size / 0.6931471805599453 if size else None,
        "learning_rate": lr,
        "gradient_norm": norm,
        "skipped": progress.skipped,
        "tokens_per_second": speed,
        "tokens_per_accelerator_hour": each * 3600,
        "mfu_causal": None if course.peak_flops is None else each * course.costs.training_flops / course.peak_flops,
        "data_wait": wait / seconds,
        "paid_hours": goodput.paid * ranks.world / 3600,
        "memory_gib": used_memory_gib(ranks.device),
    }
