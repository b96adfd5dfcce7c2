"""One update: forward and backward over the micro-batches, one clipped step, nothing read back to the host."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from hotplate.kernels.product import takes_halves
from hotplate.model.batch import Batch
from hotplate.model.lm import Output
from hotplate.model.state import State
from hotplate.train.config import TrainConfig
from hotplate.train.ranks import Ranks
from hotplate.train.spikes import LossWatch

Precision = Literal["fp32", "bf16-autocast", "bf16"]


def resolve_precision(config: TrainConfig, device: torch.device) -> Precision:
    """`auto` is bf16 on CUDA and on CPUs whose products of bf16 take half the time of fp32's, else fp32."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" or takes_halves(torch.bfloat16) else "fp32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager:
    """The context that forward passes run in."""
    if precision == "bf16-autocast":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Update:
    """What an update was, as scalars on the device (fp32 where not said), sums over this rank's micro-batches only."""

    loss_sum: Tensor  # nats, or what the objective makes of them
    weight_sum: Tensor  # targets, or what the objective counts
    byte_sum: Tensor  # UTF-8 bytes of the scored targets
    norm: Tensor  # gradient norm over all ranks, before clipping
    skipped: Tensor  # 1.0 when nothing was changed: the loss or the gradients were not finite, or policy skips a spike
    spike: Tensor  # bool: the loss was far above its recent mean
    loss: Tensor  # mean over all ranks
    details: Tensor  # sums of what the objective names, fp32 [K]


class Objective(Protocol):
    """What is minimised: a sum and the count that divides it, from what the model gives."""

    names: tuple[str, ...]  # of further sums, reported per count

    def __call__(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(loss sum with gradient, count, sums of `names` fp32 [K])."""
        ...


Backward = Callable[[Tensor], object]
Exchange = Callable[[bool], contextlib.AbstractContextManager[Backward]]


def at_once(last: bool) -> contextlib.AbstractContextManager[Backward]:
    """Around a micro-batch, told whether it is its update's last: what runs the backward pass of its loss."""
    return contextlib.nullcontext(Tensor.backward)


class Updates(Protocol):
    """What turns the gradients of a backward pass into new weights."""

    def gather(self, last: bool) -> None:
        """After each micro-batch, told whether it is its update's last."""
        ...

    def step(self, lr: float, scale: Tensor, veto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(gradient norm over all ranks, 1.0 if the update was skipped), see `Optimizer.step`."""
        ...


class NoRoom(torch.OutOfMemoryError):
    """Forward or backward passes found no memory on some rank; no rank has changed anything."""


@dataclass(frozen=True)
class Retreat:
    """What makes an update that ran out of memory one that can be done again."""

    forget: Callable[[], None]  # clears gradients
    full: Callable[[], None]  # called where memory is full, while what fills it is still held


class NextToken:
    """The language model's own loss."""

    names: tuple[str, ...] = ()

    def __call__(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return output.loss_sum, output.weight_sum, output.weight_sum.new_empty(0)


class Counted(NextToken):
    """The same, and the share of scored targets whose ids lie in [first, last): units among text, say."""

    def __init__(self, name: str, first: int, last: int) -> None:
        self.names = (name,)
        self.first, self.last = first, last

    def __call__(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        inside = (batch.targets >= self.first) & (batch.targets < self.last)
        return output.loss_sum, output.weight_sum, (batch.weights * inside).sum().view(1)


class Step:
    """The update of one rank. Gradient accumulation and data parallelism give the same sums: the loss is a sum, and
    the total number of targets divides the gradient once, at the end."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Updates,
        ranks: Ranks,
        precision: Precision,
        targets: int,
        objective: Objective | None = None,
        watch: LossWatch | None = None,
        exchange: Exchange = at_once,
        retreat: Retreat | None = None,
    ) -> None:
        """`targets`: nominal targets of an update over all ranks; keeps gradients near their final size meanwhile.
        `watch` judges every loss; without one only the gradients' norm decides whether an update is applied.
        `exchange`: what the engine puts around every micro-batch, see `at_once`. With a `retreat`, ranks ask each other
        before an update whether all had memory for their passes; these must not exchange anything then."""
        self.objective = NextToken() if objective is None else objective
        self.model = model
        self.optimizer = optimizer
        self.ranks = ranks
        self.precision = precision
        self.targets = targets
        self.watch = watch
        self.exchange = exchange
        self.retreat = retreat

    def __call__(
        self, batches: Sequence[Batch], states: list[State | None], lr: float
    ) -> tuple[Update, list[State | None]]:
        """`states` holds the carried state of each micro-batch's rows, or None to start from zero. NoRoom on all ranks
        where there is a retreat and one had no memory for its passes."""
        sums, states = self._agreed(batches, states)
        # Data parallelism averages the ranks' gradients: times world is their sum.
        nats, weights = self.ranks.sum(sums[:2].clone()).unbind()
        loss = nats / weights
        verdict = None if self.watch is None else self.watch.judge(loss)
        scale = self.targets * self.ranks.world / weights
        norm, skipped = self.optimizer.step(lr, scale, None if verdict is None else verdict.veto)
        spike = torch.zeros_like(skipped, dtype=torch.bool) if verdict is None else verdict.spike
        return Update(sums[0], sums[1], sums[2], norm, skipped, spike, loss, sums[3:]), states

    def _agreed(self, batches: Sequence[Batch], states: list[State | None]) -> tuple[Tensor, list[State | None]]:
        """What `_passes` gives, when it does on all ranks."""
        if self.retreat is None:
            return self._passes(batches, states)
        failure, found = None, None
        try:
            found = self._passes(batches, states)
        except torch.OutOfMemoryError as error:
            failure = str(error).splitlines()[0]
            self.retreat.full()
        if self.ranks.any(failure is not None)[0]:
            self.retreat.forget()
            raise NoRoom(failure or "on another rank")
        assert found is not None
        return found

    def _passes(self, batches: Sequence[Batch], states: list[State | None]) -> tuple[Tensor, list[State | None]]:
        """Forward and backward over the micro-batches: this rank's sums, and the states after them."""
        states = list(states)
        sums = torch.zeros(3 + len(self.objective.names), device=self.ranks.device)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with self.exchange(last) as backward, autocast(self.precision, self.ranks.device):
                output = self.model(batch, states[index])
                loss_sum, count, details = self.objective(output, batch)
                backward(loss_sum * (1.0 / self.targets))
            self.optimizer.gather(last)
            if batch.slots is not None:
                states[index] = output.state.detach()
            byte_sum = batch.target_bytes.sum()
            counted = torch.stack([loss_sum.detach().float(), count.float(), byte_sum.float()])
            sums += torch.cat([counted, details.float()])
        return sums, states
