"""Scaling laws and their intervals.

    power   y = a x^b              least squares of log y on log x: errors are relative
    floor   y = a x^b + c          least squares on y, a >= 0, b < 0, c >= 0 (nanoLM's form when x is the parameters)

For a given b the second is linear in a and c, so only b is searched (variable projection): no start values, no local
minimum missed between two grid points, and a thousand bootstrap replicates at once.

Letters: n points, R replicates, G exponents on a grid.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray

from hotplate.train.errors import InputError

Form = Literal["power", "floor"]
Resample = Literal["residuals", "seeds", "runs"]
PARAMETERS = {"power": 2, "floor": 3}
STEEPEST, FLATTEST = -5.0, -0.002  # exponents searched
GRID, ZOOMS = 49, 6  # each zoom narrows the grid by 24: exponents end exact to about 1e-8


@dataclass(frozen=True)
class PowerLaw:
    """y = a x^b + c; the fields are numbers, or arrays [R] of as many laws."""

    a: ndarray
    b: ndarray
    c: ndarray

    def __call__(self, x: ndarray | float) -> ndarray:
        """x [n] -> y [n], or [R, n] for many laws."""
        a, b, c = (np.asarray(value, dtype=np.float64)[..., None] for value in (self.a, self.b, self.c))
        with np.errstate(over="ignore"):  # three runs leave replicates that are anything at all far away
            return a * np.asarray(x, dtype=np.float64) ** b + c

    def rescaled(self, factor: float) -> "PowerLaw":
        """The law of y against x / factor: of tokens against hours when factor is tokens per hour."""
        return PowerLaw(self.a * np.asarray(factor) ** self.b, self.b, self.c)


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    over: Resample = "residuals"
    """residuals: the law plus resampled residuals, their scale drawn from its own distribution, so that few runs give
    Student's wide intervals; seeds: deviations from each class's mean, times sqrt(m / (m - 1)) for m seeds, drawn anew:
    the law is taken to be right; runs: whole runs drawn anew"""
    replicates: int = 1000
    """synthetic data sets, each fitted again"""
    level: float = 0.9
    """share of the replicates that an interval holds"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 20 or not 0 < self.level < 1:
            raise ValueError(f"bootstrap: want >= 20 replicates and 0 < level < 1, got {self.replicates}, {self.level}")


@dataclass(frozen=True)
class Fit:
    """A law, the points behind it, and the laws of the bootstrap's replicates."""

    form: Form
    law: PowerLaw
    x: ndarray
    y: ndarray
    replicates: PowerLaw
    resampling: Resampling

    @property
    def error(self) -> float:
        """Root mean square of y - law(x)."""
        return float(np.sqrt(np.mean((self.y - self.law(self.x)) ** 2)))

    def interval(self, x: ndarray | float) -> tuple[ndarray, ndarray]:
        """(low, high) of the law at x: where its mean lies, not where one more run would."""
        return quantiles(self.replicates(np.atleast_1d(x)), self.resampling.level)

    def parameter_interval(self, name: Literal["a", "b", "c"]) -> tuple[float, float]:
        low, high = quantiles(getattr(self.replicates, name)[:, None], self.resampling.level)
        return float(low[0]), float(high[0])


def quantiles(values_Rn: ndarray, level: float) -> tuple[ndarray, ndarray]:
    """The central `level` of each column."""
    low, high = np.quantile(values_Rn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def fit(x: ndarray, y: ndarray, form: Form, resampling: Resampling, what: str = "fit") -> Fit:
    """The law through (x [n], y [n]) with its replicates, which differ with the name `what`: two families must not
    share their random draws. InputError for too few, wrong or rising points."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    check_points(x, y, form, what)
    law = solve(x, y, form)
    drawn = _replicate(x, y, law, form, resampling, what)
    return Fit(form, law, x, y, drawn, resampling)


def check_points(x: ndarray, y: ndarray, form: Form, what: str) -> None:
    """InputError unless there are more points than parameters, at enough places, positive, and falling."""
    needed = PARAMETERS[form]
    places = len(np.unique(x))
    if len(x) <= needed or places < needed:
        raise InputError(
            f"{what}: the {form} law has {needed} parameters: want at least {needed + 1} runs at {needed} or more "
            f"places, got {len(x)} at {places}; add classes or seeds" + (", or use power" if form == "floor" else "")
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise InputError(f"{what}: want finite positive numbers, got x {x.tolist()} and y {y.tolist()}")
    slope = np.polyfit(np.log(x), np.log(y), 1)[0]
    if slope >= 0:
        first, last = (float(y[x == edge].mean()) for edge in (x.min(), x.max()))
        raise InputError(
            f"{what}: the values do not fall: {first:.4g} at {x.min():.4g}, {last:.4g} at {x.max():.4g}; no scaling "
            "law describes that. Are the runs trained to the end of their schedule, with the same data and metric?"
        )


def solve(x: ndarray, y: ndarray, form: Form) -> PowerLaw:
    """The law(s) through x [n] or [R, n] and y [n] or [R, n], without checks."""
    if form == "power":
        log_x, log_y = np.log(x), np.log(y)
        centred = log_x - log_x.mean(-1, keepdims=True)
        b = (centred * log_y).sum(-1) / (centred**2).sum(-1)
        return PowerLaw(np.exp(log_y.mean(-1) - b * log_x.mean(-1)), b, np.zeros_like(b))
    centre = np.exp(np.log(x).mean())  # x / centre keeps x^b near one
    z, wide = np.log(x / centre), np.broadcast_to(y, np.broadcast_shapes(x.shape, y.shape))
    steepness = np.broadcast_to(np.geomspace(-STEEPEST, -FLATTEST, GRID), (*wide.shape[:-1], GRID))
    for _ in range(ZOOMS):
        squares, a, c = _project(z, wide, -steepness)
        best = squares.argmin(-1)[..., None]
        lower = np.take_along_axis(steepness, np.clip(best - 1, 0, GRID - 1), -1)
        upper = np.take_along_axis(steepness, np.clip(best + 1, 0, GRID - 1), -1)
        b, a, c = (np.take_along_axis(values, best, -1)[..., 0] for values in (-steepness, a, c))
        steepness = np.exp(np.log(lower) + np.linspace(0, 1, GRID) * (np.log(upper) - np.log(lower)))
    return PowerLaw(a * centre**-b, b, c)


def _project(z: ndarray, y: ndarray, b: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """z, y [..., n] and exponents b [..., G] -> (sum of squares, a, c), each [..., G], with a >= 0 and c >= 0."""
    powers = np.exp(b[..., None] * z[..., None, :])  # [..., G, n]
    y = y[..., None, :]
    centred = powers - powers.mean(-1, keepdims=True)
    a = np.maximum(0.0, (centred * y).sum(-1) / (centred**2).sum(-1))
    c = y.mean(-1) - a * powers.mean(-1)
    through_zero = (powers * y).sum(-1) / (powers**2).sum(-1)
    a, c = np.where(c < 0, through_zero, a), np.maximum(c, 0.0)
    return ((y - a[..., None] * powers - c[..., None]) ** 2).sum(-1), a, c


def _replicate(x: ndarray, y: ndarray, law: PowerLaw, form: Form, resampling: Resampling, what: str) -> PowerLaw:
    random, n = np.random.default_rng([resampling.seed, *what.encode()]), len(x)
    shape = (resampling.replicates, n)
    if resampling.over == "residuals":
        left = n - PARAMETERS[form]
        expected = np.log(law(x)) if form == "power" else law(x)
        residuals = (np.log(y) if form == "power" else y) - expected
        spread = np.sqrt(n / random.chisquare(left, (resampling.replicates, 1)))
        drawn = expected + spread * random.choice(residuals - residuals.mean(), shape)
        values = np.exp(drawn) if form == "power" else drawn
        return solve(x, values, form)
    groups = [np.flatnonzero(x == place) for place in np.unique(x)]
    if resampling.over == "seeds":
        if min(len(group) for group in groups) < 2:
            raise InputError(f"{what}: resampling seeds needs two or more runs of every class; use residuals or runs")
        drawn = np.tile(y, (shape[0], 1))
        for group in groups:
            mean, m = y[group].mean(), len(group)
            drawn[:, group] = mean + np.sqrt(m / (m - 1)) * random.choice(y[group] - mean, (shape[0], m))
        return solve(x, drawn, form)
    picks = _places_kept(random.integers(0, n, (4 * shape[0], n)), x, PARAMETERS[form])[: shape[0]]
    if len(picks) < 20:
        raise InputError(f"{what}: too few places to draw runs anew; use residuals")
    return solve(x[picks], y[picks], form)


def _places_kept(picks: ndarray, x: ndarray, needed: int) -> ndarray:
    """The draws [_, n] that keep enough different places for a fit."""
    ordered = np.sort(x[picks], axis=1)
    return picks[1 + (np.diff(ordered, axis=1) > 0).sum(1) >= needed]
