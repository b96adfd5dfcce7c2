"""What an engine asks of a rank: bytes of model and optimiser that it holds, and bytes that it sends in an update.

Ring algorithms: of N bytes, an all-gather or a reduce-scatter over R ranks sends (R - 1) / R N from each rank, an
all-reduce twice that. Scalars (norms, counts, flags) are left out.
"""

from dataclasses import dataclass

from hotplate.model.axes import parameter_axes
from hotplate.model.config import ModelConfig
from hotplate.train.config import TrainConfig
from hotplate.train.engines.base import empty_model
from hotplate.train.step import Precision

WIDE = 4  # bytes of fp32


@dataclass(frozen=True)
class Demand:
    """Of one rank."""

    held: int  # bytes of weights, gradients and optimiser state that stay
    gathered: int  # and of the largest weights that are whole for a while
    sent: int  # bytes in an update
    between: int = 0  # of these, between replicas


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model."""

    total: int
    root: int  # outside the blocks: tables, last norm, head
    matrices: int  # hidden ones, of which Muon needs the whole

    @staticmethod
    def of(model: ModelConfig) -> "Sizes":
        found = parameter_axes(empty_model(model))
        total = sum(p.numel() for p, _ in found.values())
        root = sum(p.numel() for name, (p, _) in found.items() if not name.startswith("blocks."))
        return Sizes(total, root, sum(p.numel() for p, axes in found.values() if axes.hidden_matrix))


def demand(config: TrainConfig, precision: Precision, world: int, micro_batches: int) -> Demand:
    """Of a rank of `world`, whose rows are cut into `micro_batches`."""
    sizes, engine = Sizes.of(config.model), config.engine
    narrow = 2 if precision == "bf16" else WIDE
    muon = config.optimizer.kind == "muon"
    states = WIDE * (2 * sizes.total - (sizes.matrices if muon else 0))
    block = (sizes.total - sizes.root) // config.model.layers
    if engine.kind == "ddp":
        masters = 2 * WIDE * sizes.total if precision == "bf16" else 0  # and their gradients
        exchanges = micro_batches if precision == "bf16" else 1
        sent = 2 * _ring(sizes.total * narrow, world) * exchanges
        sent += _ring(sizes.matrices * WIDE, world) if muon else 0
        return Demand(2 * sizes.total * narrow + masters + states, 0, sent)
    if engine.kind == "fsdp":
        ranks = world // engine.replicas
        twice = sizes.total - sizes.root if engine.reshard else 0
        sent = micro_batches * _ring((sizes.total + twice) * narrow, ranks)
        sent += micro_batches * _ring(sizes.total * WIDE, ranks)
        between = micro_batches * 2 * _ring(sizes.total * WIDE // ranks, engine.replicas)
        sent += between
        sent += 2 * _ring(sizes.matrices * WIDE // ranks, ranks) if muon else 0
        whole = sizes.root + (2 * block if engine.reshard else sizes.total - sizes.root)
        return Demand((2 * WIDE * sizes.total + states) // ranks, whole * narrow, sent, between)
    masters = WIDE * sizes.total  # DeepSpeed keeps a flat fp32 copy also of fp32 weights
    weights, gradients = narrow * sizes.total, narrow * sizes.total
    if engine.zero == 3:
        sent = micro_batches * _ring((2 * sizes.total - sizes.root) * narrow + gradients, world)
        held, whole = (weights + gradients + masters + states) // world, (sizes.root + 2 * block) * narrow
        return Demand(held, whole, sent)
    exchanges = micro_batches if engine.zero == 2 else 1
    sent = _ring(gradients, world) * exchanges + _ring(weights, world)
    kept = gradients if engine.zero == 1 else gradients // world
    return Demand(weights + kept + (masters + states) // world, 0, sent)


def _ring(size: int, ranks: int) -> int:
    """Bytes that each rank sends in an all-gather, or a reduce-scatter, of `size` bytes."""
    return size * (ranks - 1) // ranks
