"""A run that grows: which model each part trains, and how one becomes the other."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hotplate.model.config import ModelConfig
from hotplate.model.growth.depth import Depth
from hotplate.model.growth.factors import Factors, factors_between, grown_config
from hotplate.model.growth.grow import grow
from hotplate.model.growth.optimizer_state import grow_state
from hotplate.model.growth.strategies import Strategy
from hotplate.model.presets import PRESETS
from hotplate.train import checkpoint
from hotplate.train.budget import Plan
from hotplate.train.checkpoint import Checkpoint
from hotplate.train.config import GrowthConfig, TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.schedule import REUSE_SWITCH
from hotplate.train.settings import merge, to_table


@dataclass(frozen=True)
class Part:
    """A stretch of a run with one model and one data set."""

    until: int  # its last step
    grown: bool
    source: int  # 0: data.source, 1: growth.data


def parts(config: GrowthConfig, plan: Plan) -> list[Part]:
    """The run's parts in order."""
    if plan.grows_after is None:
        return [Part(plan.steps, False, 0)]
    found = [Part(plan.grows_after, False, 0)]
    if config.data is not None:
        begin = plan.spent(plan.grows_after)
        found.append(Part(plan.step_at(begin + REUSE_SWITCH * (1 - begin)), True, 0))
    return [*found, Part(plan.steps, True, 0 if config.data is None else 1)]


def growth_factors(config: TrainConfig) -> Factors:
    """The factors that the config asks for. InputError when they do not lead from its model to a larger one."""
    growth, model = config.growth, config.model
    if growth.to is None:
        factors = growth.factors
    else:
        if growth.to not in PRESETS:
            raise InputError(f"--to {growth.to!r}: want a model size; known: {', '.join(PRESETS)}")
        target = dataclasses.replace(PRESETS[growth.to], vocab=model.vocab, context=model.context)
        try:
            factors = factors_between(model, target)
        except ValueError as error:
            raise InputError(f"--to {growth.to}: {error}") from error
    if factors == Factors():
        raise InputError("--grow-at: nothing grows; give --to SIZE or factors like --growth.factors.width 2")
    return factors


def grown_model(config: TrainConfig) -> ModelConfig:
    """The model that the run ends with. InputError where growth could not keep the function."""
    try:
        large = grown_config(config.model, growth_factors(config))
    except ValueError as error:
        raise InputError(f"--growth: {error}") from error
    return with_scaled_rates(config.model, large) if config.growth.rates == "scaled" else large


def with_scaled_rates(small: ModelConfig, large: ModelConfig) -> ModelConfig:
    """The grown config under muP based on the small width: the same function, other learning rates."""
    if large.mup_base is not None:
        return large
    return dataclasses.replace(large, mup_base=small.width, logit_scale=large.logit_scale * large.width / small.width)


def final_model(config: TrainConfig) -> ModelConfig:
    """The model that the run ends with, whether it grows or not."""
    return grown_model(config) if config.growth.at else config.model


def grow_all(
    config: TrainConfig, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and optimiser tensors of the grown model.

    Deterministic: repeated from the same checkpoint, it gives the same bits, so a run killed while it grows loses
    nothing.
    """
    growth, factors = config.growth, growth_factors(config)
    _, grown = grow(weights, config.model, factors, growth.strategy, growth.depth)
    state: dict[str, Tensor] = {}
    if growth.moments == "keep":
        state = grow_state(optimizer, config.model, factors, growth.strategy, growth.depth)
    return grown, state


def write_grown(
    out: Path,
    found: Checkpoint,
    factors: Factors,
    strategy: Strategy,
    *,
    depth: Depth = "identity",
    keep_moments: bool = True,
    scaled_rates: bool = False,
) -> ModelConfig:
    """Grow the model of a checkpoint into a new checkpoint folder, to train from; the grown config.

    ValueError where the function cannot be kept; OSError where `out` cannot be written. Nothing is left in either case.
    """
    where = f"{found.path}: trainer.json"
    small = merge(ModelConfig(), found.trainer["model"], f"{where}: model")
    large, grown = grow(dict(found.weights), small, factors, strategy, depth)
    if scaled_rates:
        large = with_scaled_rates(small, large)
    state: dict[str, Tensor] = {}
    if keep_moments:
        state = grow_state(found.optimizer, small, factors, strategy, depth)
    saved = merge(TrainConfig(), found.trainer["config"], f"{where}: config")
    trainer = {
        "step": 0,
        "data": found.trainer["data"],
        "tokenizer": found.trainer["tokenizer"],
        "config": to_table(dataclasses.replace(saved, model=large, growth=GrowthConfig())),
        "model": to_table(large),
        "grown": {
            "from": str(found.path),
            "step": found.trainer["step"],
            "factors": to_table(factors),
            "strategy": to_table(strategy),
            "depth": depth,
        },
    }
    checkpoint.write(out, {"model": grown, "optimizer": state, "state": {}}, trainer)
    return large
