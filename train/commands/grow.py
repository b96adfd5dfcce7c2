"""`hotplate grow RUN --width 2 --ffn 2 -o NEW`: a larger model that computes what the trained one does."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.model.growth.check import Report, check
from hotplate.model.growth.depth import Depth
from hotplate.model.growth.factors import Factors, grown_config
from hotplate.model.growth.strategies import Strategy
from hotplate.train import checkpoint, console, settings
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.growing import write_grown

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
    rates: Literal["plain", "scaled"] = "plain"
    """scaled: hidden matrices learn at muP's smaller rate, as the small model's did"""
    json: str | None = None
    """also write the comparison to this file"""


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
    try:
        large = grown_config(model, config.factors)
        before, after = (cost(each, each.context).parameters for each in (model, large))
        console.say(f"{run}, step {found.trainer['step']}: {before:,} parameters grow to {after:,}")
        if config.check:
            _check(found, model, config)
        if out is not None:
            write_grown(
                out,
                found,
                config.factors,
                config.strategy,
                depth=config.blocks,
                keep_moments=config.moments == "keep",
                scaled_rates=config.rates == "scaled",
            )
            console.say(f"written to {out}; go on with `hotplate train {out} --budget ...`")
    except ValueError as error:
        raise InputError(f"hotplate grow: {error}") from error
    except OSError as error:
        raise InputError(f"{out}: not written: {error}; free some space or choose another -o") from error
    return 0


def _check(found: checkpoint.Checkpoint, model: ModelConfig, config: GrowConfig) -> None:
    """Compare the two models on random tokens, and say what came out."""
    weights = dict(found.weights)
    tokens = torch.randint(model.vocab, PROBE, generator=torch.Generator().manual_seed(0))
    report = check(weights, model, config.factors, config.strategy, config.blocks, tokens)
    _show(report)
    if config.json is not None:
        facts = {**environment(torch.device("cpu")), "grown": settings.to_table(config), "report": asdict(report)}
        Path(config.json).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


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
