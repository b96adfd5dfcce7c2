"""`hotplate growth-study [PLAN.toml] --json RESULT.json`: growth against training from scratch, with seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hotplate.train import console, settings
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.plan import lay_out
from hotplate.train.ranks import start
from hotplate.train.science import growth_study
from hotplate.train.science.growth_figure import draw
from hotplate.train.step import resolve_precision
from hotplate.train.throughput import measure
from hotplate.train.untrusted import read_amounts, read_toml


@dataclass(frozen=True, kw_only=True)
class GrowthStudyConfig:
    """Train what the plan says (what is there already is kept), and compare."""

    folder: str | None = None
    """another folder than the plan's"""
    json: str | None = None
    """also write the comparison to this file, and its figure beside it"""


def main(arguments: Sequence[str]) -> int:
    """`hotplate growth-study`: the shipped plan, train/science/growth_study.toml."""
    name, flags = settings.split_preset(arguments, str(Path(growth_study.__file__).with_suffix(".toml")))
    config = settings.parse(GrowthStudyConfig(), flags, "hotplate growth-study PLAN")
    path = Path(name)
    values = read_toml(path)
    plan = growth_study.load_plan(values, str(path))
    if config.folder is not None:
        plan = replace(plan, folder=config.folder)
    study = growth_study.Study(plan, str(path), console.say)
    costs = _seconds_per_token(study)
    rows = growth_study.compare(study, costs)
    _show(rows)
    result = {
        "machine": environment(torch.device("cpu")),
        "plan": values,
        "seconds_per_token": costs,
        "rows": rows,
    }
    if config.json is not None:
        out = Path(config.json)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(rows, out.with_suffix(".png"))
        console.say(f"written to {out} and {out.with_suffix('.png')}")
    return 0


def _seconds_per_token(study: growth_study.Study) -> dict[str, float]:
    """Measured for the small model and every target, one after the other; kept in the study's folder."""
    path = study.folder / "seconds_per_token.json"
    if path.is_file():
        mend = "correct it, or delete it: they are measured again then"
        kept = read_amounts(path, "the costs of a study", "seconds per token", mend)
        if missing := [name for name in ("small", *study.large) if name not in kept]:
            raise InputError(f"{path}: {missing[0]}: missing; {mend}")
        return kept
    small = study.small
    ranks = start(small)
    try:
        precision, rows = resolve_precision(small, ranks.device), lay_out(small, ranks).micro_rows
        found = {
            name: 1.0
            / measure(
                model, small.optimizer, ranks, precision, small.execution, rows=rows, window=small.data.window
            ).tokens_per_second
            for name, model in {"small": small.model, **study.large}.items()
        }
    finally:
        ranks.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    cells = []
    for row in rows:
        final = sum(row["final_loss"]) / len(row["final_loss"])
        gains = [_words(row.get(key)) for key in ("gain_tokens", "gain_tokens_billed", "gain_seconds_billed")]
        cells.append([row["target"], row["way"], f"{row['rate']:g}", f"{final:.4f}", *gains])
    console.table(
        "cost of scratch over cost of the grown model, to scratch's final loss (95 % interval over seeds)",
        ["target", "way", "rate", "final loss", "tokens", "with the small model's", "seconds, with the small model's"],
        cells,
    )


def _words(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    if gain["mean"] is None:
        return f"reached by {gain['reached']} seeds"
    return f"{gain['mean']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})"
