"""Where two families' laws meet, with an interval, and how a throughput gain moves the point.

Both families are fitted against accelerator-hours. The one that is worse at the start overtakes where the laws cross;
each pair of bootstrap replicates crosses somewhere of its own or not at all within the horizon. A family that becomes g
times faster has the same law in tokens, so in hours y(h) = law(g h): no new training is needed to see where it would
cross.

For two power laws without floor that cross at h0, with exponents b (the one that becomes faster) and b', the new
crossing is h0 g^(-b / (b - b')): it depends on the ratio of the exponents alone (`moved`).
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from hotplate.train.errors import InputError
from hotplate.train.science.laws import Fit, PowerLaw

GRID = 4000  # places between start and horizon, equally spaced in log x; the root is interpolated between two


@dataclass(frozen=True)
class Crossing:
    """Of `overtaking` and `leading`, on [start, horizon]; None or infinity stand for no crossing there."""

    leading: str
    overtaking: str
    start: float
    horizon: float
    at: float | None
    low: float
    high: float
    never: float  # share of replicates without a crossing
    level: float


def first_crossing(lower: PowerLaw, upper: PowerLaw, start: float, horizon: float) -> ndarray:
    """The first x in [start, horizon] where `upper` is no longer above `lower`, per replicate; infinity for none.

    A replicate that has crossed before `start` counts as crossing at `start`."""
    log_x = np.linspace(np.log(start), np.log(horizon), GRID)
    gap = np.atleast_2d(upper(np.exp(log_x)) - lower(np.exp(log_x)))
    met = gap <= 0
    index = met.argmax(-1)
    before = np.clip(index - 1, 0, None)
    rows = np.arange(len(gap))
    g0, g1 = gap[rows, before], gap[rows, index]
    share = np.where(index > before, g0 / np.where(g0 == g1, 1.0, g0 - g1), 0.0)
    place = np.exp(log_x[before] + share * (log_x[index] - log_x[before]))
    return np.where(met.any(-1), place, np.inf)


def crossing(
    first: tuple[str, Fit], second: tuple[str, Fit], horizon: float, gains: tuple[float, float] = (1.0, 1.0)
) -> Crossing:
    """Where the laws of two named fits meet when each family runs `gains` times as fast as it was measured.

    It starts at the smallest measured x of either. InputError when the horizon is not beyond it."""
    laws = [fit.law.rescaled(gain) for (_, fit), gain in zip((first, second), gains, strict=True)]
    many = [fit.replicates.rescaled(gain) for (_, fit), gain in zip((first, second), gains, strict=True)]
    start = min(float((fit.x / gain).min()) for (_, fit), gain in zip((first, second), gains, strict=True))
    if horizon <= start:
        raise InputError(f"--horizon {horizon:g}: want it beyond the first measured point, {start:g}")
    if any(fit.resampling != first[1].resampling for fit in (first[1], second[1])):
        raise ValueError("crossing: want both fits with the same resampling")
    level = first[1].resampling.level
    ahead, behind = (0, 1) if float(laws[0](start)[0]) <= float(laws[1](start)[0]) else (1, 0)
    at = float(first_crossing(laws[ahead], laws[behind], start, horizon)[0])
    drawn = first_crossing(many[ahead], many[behind], start, horizon)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    names = first[0], second[0]
    return Crossing(
        names[ahead],
        names[behind],
        start,
        horizon,
        None if np.isinf(at) else at,
        float(low),
        float(high),
        float(np.isinf(drawn).mean()),
        level,
    )


def moved(at: float, exponent_ratio: float, gain: float) -> float:
    """Where a crossing at `at` goes when the overtaking family becomes `gain` times faster; `exponent_ratio` is its
    exponent over the leader's. ValueError unless it is above 1: a flatter law never overtakes."""
    if exponent_ratio <= 1 or gain <= 0 or at <= 0:
        raise ValueError(f"crossing: want a ratio above 1, at and gain above 0, got {exponent_ratio}, {at}, {gain}")
    return at * gain ** (-exponent_ratio / (exponent_ratio - 1))
