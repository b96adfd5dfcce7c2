"""`hotplate crossing RUNS... [flags]`: where one family overtakes another, and how a throughput gain moves that."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from hotplate.train import console, settings
from hotplate.train.budget import Budget
from hotplate.train.errors import InputError
from hotplate.train.published import best_runs, published_crossing, throughputs
from hotplate.train.science.comparison import (
    Question,
    amount,
    ask,
    crossing_record,
    crossings,
    edge,
    fit_families,
    note,
    reach,
)
from hotplate.train.science.crossing import crossing, moved

RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0)  # assumed exponents of the overtaking family over the leader's
SIZES = ("mini", "tiny", "small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class CrossingConfig:
    """Fit families of runs against accelerator-hours and find where they meet."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders, folders of runs, tables of points; `published` alone: the paper's crossing for assumed exponents"""
    gains: tuple[float, ...] = (1.5, 2.0, 5.0, 10.0)
    """throughput gains of the overtaking family to try"""
    faster: str | None = None
    """give the gains to this family instead"""
    horizon: float | None = None
    """hours to look ahead; none = 1000 times the longest measured class"""
    json: str | None = None
    """also write everything to this file"""
    question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)


def main(arguments: Sequence[str]) -> int:
    """`hotplate crossing runs/science --gains 2 5`."""
    config = settings.parse(CrossingConfig(), arguments, "hotplate crossing")
    if any(gain <= 0 for gain in config.gains):
        raise InputError(f"--gains {config.gains}: want factors above zero")
    record = _published(config) if config.runs == ("published",) else _measured(config)
    if config.json:
        Path(config.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _measured(config: CrossingConfig) -> dict[str, Any]:
    fits = fit_families(ask(config.runs, config.question), "hours", config.question)
    if config.faster is not None and config.faster not in fits:
        raise InputError(f"--faster {config.faster!r}: no such family; there are {', '.join(fits)}")
    horizon = reach(fits, config.horizon)
    found = []
    for plain in crossings(fits, config.horizon):
        pair = (plain.leading, fits[plain.leading]), (plain.overtaking, fits[plain.overtaking])
        faster = config.faster or plain.overtaking
        if faster in (plain.leading, plain.overtaking):
            found.append((faster, 1.0, plain))
            gains = [tuple(gain if name == faster else 1.0 for name, _ in pair) for gain in config.gains]
            tried = [crossing(*pair, horizon, gains=(each[0], each[1])) for each in gains]
            found += [(faster, gain, place) for gain, place in zip(config.gains, tried, strict=True)]
    rows = [
        [
            f"{place.overtaking} overtakes {place.leading}",
            "as measured" if gain == 1.0 else f"{faster} {gain:g}x",
            edge(place.at, "hours", horizon),
            f"{edge(place.low, 'hours', horizon)} to {edge(place.high, 'hours', horizon)}",
            f"{place.never:.0%}",
        ]
        for faster, gain, place in found
    ]
    console.table(
        f"{config.question.metric}, {config.question.form} law: crossings between the first measured point and "
        f"{amount(horizon, 'hours')}",
        ["families", "throughput", "crossing", f"{config.question.bootstrap.level:.0%} interval", "no crossing"],
        rows,
    )
    console.say(note(config.question))
    return {"crossings": [{"faster": faster, "gain": gain, **crossing_record(place)} for faster, gain, place in found]}


def _published(config: CrossingConfig) -> dict[str, Any]:
    """The paper's crossing moved by gains. Its exponents are in no public table: a row per assumed ratio."""
    published = published_crossing()
    places = {ratio: [moved(published.hours, ratio, gain) for gain in config.gains] for ratio in RATIOS}
    first = min(Budget.parse(run.budget).amount for run in best_runs()) / 3600
    rows = [
        [f"{ratio:g}", *(f"< {amount(first, 'hours')}" if at < first else amount(at, "hours") for at in ats)]
        for ratio, ats in places.items()
    ]
    console.table(
        f"{published.overtaking} meets {published.leading} at {published.hours:,.0f} RTX 3090 hours as published; "
        f"with a faster {published.overtaking}, by the assumed ratio of the two exponents",
        ["exponent ratio", *(f"{gain:g}x" for gain in config.gains)],
        rows,
    )
    card, speeds = throughputs("RTX 3090")
    shares = [f"{size} {speeds[f'qlstm-{size}'][0] / speeds[f'gpt-{size}'][0]:.0%}" for size in SIZES]
    console.say(f"{published.overtaking} throughput as a share of the GPT's on the {card}: {', '.join(shares)}")
    return {"published_hours": published.hours, "gains": list(config.gains), "hours_by_ratio": places}
