"""How ranks share a model: one interface, chosen by `--engine`."""

from hotplate.model.config import ModelConfig
from hotplate.train.config import TrainConfig
from hotplate.train.engines.base import Engine
from hotplate.train.engines.ddp import DDP
from hotplate.train.errors import InputError
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision

__all__ = ["DDP", "Engine", "build"]


def build(model: ModelConfig, config: TrainConfig, ranks: Ranks, precision: Precision) -> Engine:
    """A model with initial weights, its optimiser, and what ranks do about them. InputError where the engine cannot
    run here, or not with this config."""
    if config.engine.kind != "ddp" and (config.execution.compile or config.execution.recompute):
        raise InputError(
            f"--engine {config.engine.kind}: blocks are compiled or recomputed by engine ddp only; leave out "
            "--compile and --recompute, or use --engine ddp"
        )
    if config.engine.kind != "ddp" and config.guard.out_of_memory == "halve":
        raise InputError(
            f"--engine {config.engine.kind}: updates that ran out of memory are repeated by engine ddp only; leave out "
            "--guard.out-of-memory halve, or use --engine ddp"
        )
    if config.engine.kind == "fsdp":
        from hotplate.train.engines.fsdp import FSDP  # loads half a second's worth of torch

        return FSDP(model, config, ranks, precision)
    if config.engine.kind == "deepspeed":
        from hotplate.train.engines.zero import Zero  # an optional package

        return Zero(model, config, ranks, precision)
    return DDP(model, config, ranks, precision)
