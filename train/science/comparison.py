"""Families of runs on one axis: their laws, pairwise crossings, and all of it as numbers for people and for JSON."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotplate.train.console import quantity
from hotplate.train.errors import InputError
from hotplate.train.science.crossing import Crossing, crossing
from hotplate.train.science.laws import Fit, Form, Resampling, fit
from hotplate.train.science.observations import (
    UNITS,
    Axis,
    Grouping,
    Metric,
    Observation,
    coordinates,
    families,
    gather,
)

HORIZON = 1000.0  # times the largest measured point, where no horizon is given


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is compared: the score, and how runs make a law."""

    metric: Metric = "normalised_perplexity"
    """score of the runs; tables of points must hold the same"""
    split: str = "test"
    """held-out split that was scored"""
    group: Grouping = "architecture"
    """a family is an architecture (gpt, decoder, qlstm, lstm) or one model preset"""
    form: Form = "power"
    """power: a x^b; floor: a x^b + c"""
    bootstrap: Resampling = field(default_factory=Resampling)


def ask(paths: Sequence[str], question: Question) -> list[Observation]:
    """The observations that a question is about."""
    return gather(paths, question.metric, question.split, question.group)


def fit_families(observations: Sequence[Observation], axis: Axis, question: Question) -> dict[str, Fit]:
    """A law per family. InputError names the family whose runs allow none."""
    coordinates(observations, axis)  # all on one axis, in hours of one accelerator
    fits = {}
    for family, members in families(observations).items():
        x, y = coordinates(members, axis)
        fits[family] = fit(x, y, question.form, question.bootstrap, f"{family} against {axis}")
    return fits


def crossings(fits: Mapping[str, Fit], horizon: float | None) -> list[Crossing]:
    """Every pair's crossing as measured. InputError for fewer than two families."""
    if len(fits) < 2:
        raise InputError(f"crossing: want two families or more, got {', '.join(fits) or 'none'}; see --group")
    return [crossing(first, second, reach(fits, horizon)) for first, second in itertools.combinations(fits.items(), 2)]


def reach(fits: Mapping[str, Fit], horizon: float | None) -> float:
    """The horizon: as given, or a thousand times the largest measured point."""
    return HORIZON * max(float(found.x.max()) for found in fits.values()) if horizon is None else horizon


def amount(value: float, axis: Axis) -> str:
    """`0.0056` hours as 20 s, 50000 as 50k h; other axes as quantities."""
    if axis != "hours":
        return quantity(value)
    for unit, seconds in (("h", 3600.0), ("min", 60.0)):
        if value * 3600 >= seconds:
            return f"{quantity(value * 3600 / seconds)} {unit}"
    return f"{quantity(value * 3600)} s"


def edge(value: float | None, axis: Axis, horizon: float) -> str:
    """A place, or that it lies beyond the horizon."""
    return f"> {amount(horizon, axis)}" if value is None or value == float("inf") else amount(value, axis)


def describe_fit(family: str, found: Fit, axis: Axis) -> list[str]:
    """Cells: family, runs, coefficient and exponent with intervals, floor, error."""
    low, high = found.parameter_interval("b")
    floor = []
    if found.form == "floor":
        bounds = found.parameter_interval("c")
        floor = [f"{float(found.law.c):.4g} [{bounds[0]:.4g}, {bounds[1]:.4g}]"]
    return [
        family,
        str(len(found.x)),
        f"{amount(float(found.x.min()), axis)} to {amount(float(found.x.max()), axis)}",
        f"{float(found.law.a):.4g}",
        f"{float(found.law.b):.4f} [{low:.4f}, {high:.4f}]",
        *floor,
        f"{found.error:.2g}",
    ]


def fit_columns(form: Form) -> list[str]:
    """What `describe_fit` gives."""
    return ["family", "runs", "measured", "a", "exponent b", *(["floor c"] if form == "floor" else []), "rms"]


def note(question: Question) -> str:
    """How the intervals were made, for under a table."""
    how = {
        "residuals": "residuals of the fit drawn anew, scale drawn with them",
        "seeds": "deviations of seeds from their class drawn anew",
        "runs": "whole runs drawn anew",
    }[question.bootstrap.over]
    boot = question.bootstrap
    return f"Intervals: {boot.level:.0%} of {boot.replicates:,} bootstrap replicates ({how}), seed {boot.seed}"


def fit_record(found: Fit, axis: Axis) -> dict[str, Any]:
    """A fit as JSON-like values."""
    names = ("a", "b", "c") if found.form == "floor" else ("a", "b")
    return {
        "form": "y = a x^b + c" if found.form == "floor" else "y = a x^b",
        "x": UNITS[axis],
        "runs": len(found.x),
        **{name: float(getattr(found.law, name)) for name in names},
        "intervals": {name: found.parameter_interval(name) for name in names},  # type: ignore[arg-type]
        "rms": found.error,
    }


def crossing_record(found: Crossing) -> dict[str, Any]:
    """A crossing as JSON-like values; null for beyond the horizon."""
    beyond = float("inf")
    return {
        "leading": found.leading,
        "overtaking": found.overtaking,
        "hours": found.at,
        "interval": [None if value == beyond else value for value in (found.low, found.high)],
        "level": found.level,
        "from": found.start,
        "horizon": found.horizon,
        "probability_of_no_crossing": found.never,
    }
