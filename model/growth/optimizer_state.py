"""What an optimiser knows of a small model, for the grown one.

A copied feature's gradient is shared among its n copies, so gradients are copies divided by n, first moments likewise,
second moments divided by n squared; values that were scaled by s have gradients 1 / s as large. Held with
learning rate x s / (copies read), weight decay / that and eps / (n s), a noise-free clone follows the small model's
AdamW step for step (mu-P's rule, with eps; derivation in docs/growth.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hotplate.model.config import ModelConfig
from hotplate.model.growth import expand
from hotplate.model.growth.depth import Depth, sources
from hotplate.model.growth.expand import Layout
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.strategies import Strategy, declared_axes, layouts

MOMENT_POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "momentum": 1}


@dataclass(frozen=True)
class Scale:
    """Multipliers of one parameter's hyper-parameters, relative to the small model's."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    squared_norm: float = 1.0  # of its gradient's share in the clipped norm


def shared_among(where: Layout) -> tuple[float, ...]:
    """Per block: what the small gradient is divided by."""
    return tuple(n * s for n, s in zip(where.copies, where.scale, strict=True))


def scales(config: ModelConfig, factors: Factors) -> dict[str, Scale]:
    """Every parameter's multipliers. Where blocks of one parameter differ (queries beside fewer keys), their mean."""
    strategy = Strategy(snr_db=None)
    axes = declared_axes(config)
    found = {}
    for name, where in layouts(config, factors, strategy).items():
        declared = axes[name]
        read = 1 if declared.reads is None else where.maps[declared.reads].copies
        shared = shared_among(where)
        rates = [s / read for s in where.scale]
        norms = [n * s * s / read for n, s in zip(where.copies, where.scale, strict=True)]
        lr = sum(rates) / len(rates)
        found[name] = Scale(lr, 1 / lr, len(shared) / sum(shared), sum(norms) / len(norms))
    return found


def grow_state(
    state: Mapping[str, Tensor], config: ModelConfig, factors: Factors, strategy: Strategy, depth: Depth
) -> dict[str, Tensor]:
    """Optimiser tensors `kind.parameter` for the grown model; `master.*` weights are not among them: they grow as
    weights. Blocks that start as identities start without a history. ValueError for an unknown kind of tensor."""
    where = layouts(config, factors, strategy)
    wide: dict[str, Tensor] = {}
    for key, x in state.items():
        kind, _, name = key.partition(".")
        if kind == "step":
            wide[key] = x.clone()
        elif kind in MOMENT_POWERS:
            power = MOMENT_POWERS[kind]
            per_block = tuple(shared**-power for shared in shared_among(where[name]))
            wide[key] = expand.repeat(x, where[name], per_block).to(x.dtype)
        elif kind != "master":
            raise ValueError(
                f"growth: optimiser tensor {key!r} of an unknown kind; known: step, {', '.join(MOMENT_POWERS)}"
            )
    grown = {key: x for key, x in wide.items() if not key.partition(".")[2].startswith("blocks.")}
    for layer, (source, silent) in enumerate(sources(config.layers, factors.depth, depth)):
        prefix = f"blocks.{source}."
        for key, x in wide.items():
            kind, _, name = key.partition(".")
            if name.startswith(prefix) and not silent:
                grown[f"{kind}.blocks.{layer}.{name.removeprefix(prefix)}"] = x.clone()
    return grown
