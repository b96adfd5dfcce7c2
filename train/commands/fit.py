"""`hotplate fit RUNS... [flags]`: scaling laws of finished runs, with intervals and extrapolation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from hotplate.train import console, settings
from hotplate.train.errors import InputError
from hotplate.train.science.chinchilla import ChinchillaFit, fit_chinchilla
from hotplate.train.science.comparison import (
    Question,
    amount,
    ask,
    describe_fit,
    fit_columns,
    fit_families,
    fit_record,
    note,
)
from hotplate.train.science.observations import UNITS, Axis, Observation, coordinates, families

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fit a law to each family of runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders, folders of runs, tables of points (.toml, .json), or `published`"""
    axis: Axis = "hours"
    """cost on the x axis"""
    law: Literal["one-axis", "chinchilla"] = "one-axis"
    """one-axis: the question's form over --axis; chinchilla: E + A / N^alpha + B / D^beta over parameters and tokens"""
    at: tuple[float, ...] = ()
    """extrapolate to these amounts of the axis (chinchilla: to the best model of these training FLOPs)"""
    json: str | None = None
    """also write everything to this file"""
    question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)


def main(arguments: Sequence[str]) -> int:
    """`hotplate fit runs/science --at 1 10 100`."""
    config = settings.parse(FitConfig(), arguments, "hotplate fit")
    if any(not 0 < value < float("inf") for value in config.at):
        raise InputError(f"--at {config.at}: want positive amounts of {UNITS[config.axis]}")
    observations = ask(config.runs, config.question)
    record = _chinchilla(observations, config) if config.law == "chinchilla" else _one_axis(observations, config)
    console.say(note(config.question))
    if config.json:
        Path(config.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _one_axis(observations: list[Observation], config: FitConfig) -> dict[str, Any]:
    fits = fit_families(observations, config.axis, config.question)
    metric = config.question.metric
    rows = [describe_fit(family, found, config.axis) for family, found in fits.items()]
    console.table(
        f"{metric} of {config.question.split} against {UNITS[config.axis]}", fit_columns(config.question.form), rows
    )
    record: dict[str, Any] = {family: fit_record(found, config.axis) for family, found in fits.items()}
    if config.at:
        lines = []
        for family, found in fits.items():
            low, high = found.interval(np.array(config.at))
            values = found.law(np.array(config.at))
            cells = [f"{y:.4g} [{a:.4g}, {b:.4g}]" for y, a, b in zip(values, low, high, strict=True)]
            lines.append([family, *cells])
            record[family]["at"] = [
                {"x": x, "value": float(y), "interval": [float(a), float(b)]}
                for x, y, a, b in zip(config.at, values, low, high, strict=True)
            ]
        console.table(f"extrapolated {metric}", ["family", *(amount(x, config.axis) for x in config.at)], lines)
    return record


def _chinchilla(observations: list[Observation], config: FitConfig) -> dict[str, Any]:
    record: dict[str, Any] = {}
    fits: dict[str, ChinchillaFit] = {}
    for family, members in families(observations).items():
        N, value = coordinates(members, "parameters")
        D, _ = coordinates(members, "tokens")
        try:
            fits[family] = found = fit_chinchilla(N, D, value, config.question.bootstrap)
        except InputError as error:
            raise InputError(f"{family}: {error}") from error
        record[family] = {name: getattr(found.law, name) for name in COEFFICIENTS}
        record[family]["intervals"] = {name: found.interval(name) for name in COEFFICIENTS}
    rows = []
    for family, found in fits.items():
        bounds = {name: found.interval(name) for name in COEFFICIENTS}
        rows.append(
            [
                family,
                *(
                    f"{getattr(found.law, name):.4g} [{bounds[name][0]:.3g}, {bounds[name][1]:.3g}]"
                    for name in COEFFICIENTS
                ),
            ]
        )
    console.table(f"{config.question.metric} = E + A / N^alpha + B / D^beta", ["family", *COEFFICIENTS], rows)
    lines = []
    for family, found in fits.items():
        for flops in config.at:
            N_best, D_best = found.law.optimum(flops)
            value_best, low, high = found.predict(N_best, D_best)
            cells = [console.quantity(number) for number in (flops, N_best, D_best)]
            lines.append([family, *cells, f"{value_best:.4g} [{low:.4g}, {high:.4g}]"])
    if lines:
        console.table("best at 6 N D FLOPs", ["family", "FLOPs", "parameters", "tokens", "value"], lines)
    return record
