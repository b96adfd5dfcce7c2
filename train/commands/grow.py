"""`hotplate grow RUN --width 2 --ffn 2 -o NEW`: a larger model that computes what the trained one does."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.model.growth.check import Report, check
from hotplate.model.growth.depth import Depth
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.grow import grow
from hotplate.model.growth.optimizer_state import grow_state
from hotplate.model.growth.strategies import Strategy
from hotplate.train import checkpoint, console, settings
from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError

PROBE = (2, 48)  # rows and steps of the random tokens that --check compares on


@dataclass(frozen=True, kw_only=True)
class GrowConfig:
    """What grows, by how much, and how the added features get their weights."""

    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """new checkpoint folder; `hotplate train OUT --budget ...` goes on from it"""
    check: bool = False
    """compare the two models: logits in three precisions, every block's output, symmetry and rank of the copies"""
    factors: Annotated[Factors, tyro.conf.arg(name="")] = field(default_factory=Factors)
    strategy: Strategy = field(default_factory=Strategy)
    blocks: Depth = "identity"
    """added blocks: identity (copies that change nothing at first), stack or interleave"""
    moments: Literal["keep", "fresh"] = "keep"
    """keep: the optimiser's state grows with the weights; fresh: training starts it anew"""


def main(arguments: Sequence[str]) -> int:
    """`hotplate grow RUN --width 2 --ffn 2 --heads 2 -o NEW`."""
    run, flags = settings.split_preset(arguments, "")
    config = settings.parse(GrowConfig(), flags, "hotplate grow RUN")
    if not run:
        raise InputError(
            "hotplate grow: want a run or checkpoint folder first; e.g. hotplate grow runs/demo-... -o NEW"
        )
    if config.out is None and not config.check:
        raise InputError(
            "hotplate grow: nothing to do; give -o FOLDER for the grown model, --check to compare, or both"
        )
    out = None if config.out is None else Path(config.out)
    if out is not None and out.exists():
        raise InputError(f"{out}: exists; choose another -o, nothing is overwritten")
    found = checkpoint.find(Path(run))
    model = settings.merge(ModelConfig(), found.trainer["model"], f"{run}: trainer.json: model")
    weights = {name: found.optimizer.get(f"master.{name}", x) for name, x in found.model.items()}
    try:
        large, grown = grow(weights, model, config.factors, config.strategy, config.blocks)
    except ValueError as error:
        raise InputError(f"hotplate grow: {error}") from error
    before, after = (cost(each, each.context).parameters for each in (model, large))
    console.say(f"{run}, step {found.trainer['step']}: {before:,} parameters grow to {after:,}")
    if config.check:
        tokens = torch.randint(model.vocab, PROBE, generator=torch.Generator().manual_seed(0))
        _show(check(weights, model, config.factors, config.strategy, config.blocks, tokens))
    if out is not None:
        _write(out, run, found, model, large, grown, config)
    return 0


def _write(
    out: Path,
    run: str,
    found: checkpoint.Checkpoint,
    model: ModelConfig,
    large: ModelConfig,
    grown: dict[str, torch.Tensor],
    config: GrowConfig,
) -> None:
    """The grown model as a checkpoint that training starts from."""
    state: dict[str, torch.Tensor] = {}
    if config.moments == "keep":
        state = grow_state(found.optimizer, model, config.factors, config.strategy, config.blocks)
    saved = settings.merge(TrainConfig(), found.trainer["config"], f"{run}: trainer.json: config")
    trainer = {
        **{key: found.trainer[key] for key in ("data", "tokenizer")},
        "step": 0,
        "config": settings.to_table(dataclasses.replace(saved, model=large, growth=type(saved.growth)())),
        "model": settings.to_table(large),
        "grown": {"from": run, "step": found.trainer["step"], **settings.to_table(config)},
    }
    try:
        checkpoint.write(out, {"model": grown, "optimizer": state, "state": {}}, trainer)
    except OSError as error:
        raise InputError(f"{out}: not written: {error}; free some space or choose another -o") from error
    console.say(f"written to {out}; go on with `hotplate train {out} --budget ...`")


def _show(report: Report) -> None:
    rows = [
        [dtype, f"{e.largest:.3g}", f"{e.largest_logit:.3g}", f"{e.same_argmax:.2%}"]
        for dtype, e in report.logits.items()
    ]
    console.table(
        "logits of the grown model against the small one's",
        ["dtype", "largest difference", "largest logit", "same argmax"],
        rows,
    )
    blocks = [[str(layer), f"{share:.3g}"] for layer, share in enumerate(report.layers)]
    console.table("output of each small block, float64", ["block", "largest difference / largest value"], blocks)
    if report.symmetry:
        alike = [[s.name, f"{s.cosine:.4f}", f"{s.rank:.1%}"] for s in report.symmetry]
        console.table(
            "copies in the first block (cosine 1: they receive equal gradients and never separate)",
            ["matrix", "cosine of copied rows", "rank"],
            alike,
        )
