"""Loss over parameters and tokens: L(N, D) = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022 ("Training compute-optimal large language models", approach 3): the sum over runs of the Huber
loss of log L(N, D) - log L, delta 1e-3, minimised by L-BFGS from many starts over (log A, log B, log E, alpha, beta).
Here each start is a pair of exponents on a grid, with E, A and B from non-negative least squares.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from hotplate.train.errors import InputError
from hotplate.train.science.laws import Resampling, quantiles

DELTA = 1e-3
START_EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
POLISHED = 8  # starts of the grid that go through L-BFGS, best first
SMALLEST = 1e-9  # of a non-negative coefficient, so that it has a logarithm


@dataclass(frozen=True)
class Chinchilla:
    """E + A / N^alpha + B / D^beta, in nats per token when L is."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, parameters: ndarray | float, tokens: ndarray | float) -> ndarray:
        return self.E + self.A * np.asarray(parameters) ** -self.alpha + self.B * np.asarray(tokens) ** -self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the lowest loss at 6 N D = flops."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


@dataclass(frozen=True)
class ChinchillaFit:
    """The law, and the laws of runs drawn anew."""

    law: Chinchilla
    replicates: tuple[Chinchilla, ...]
    resampling: Resampling

    def interval(self, name: str) -> tuple[float, float]:
        """Of a field of the law."""
        values = np.array([[getattr(law, name)] for law in self.replicates])
        low, high = quantiles(values, self.resampling.level)
        return float(low[0]), float(high[0])

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """(value, low, high)."""
        values = np.array([[law(parameters, tokens)] for law in self.replicates])
        low, high = quantiles(values, self.resampling.level)
        return float(self.law(parameters, tokens)), float(low[0]), float(high[0])


def fit_chinchilla(N: ndarray, D: ndarray, L: ndarray, resampling: Resampling) -> ChinchillaFit:
    """The law through runs of N [n] parameters, D [n] tokens and loss L [n]; intervals always draw runs anew.

    InputError for fewer than six runs, or fewer than three different N or D."""
    N, D, L = (np.asarray(values, dtype=np.float64) for values in (N, D, L))
    if len(L) < 6 or min(len(np.unique(N)), len(np.unique(D))) < 3:
        raise InputError(
            f"chinchilla: want six or more runs over three or more sizes and token counts, got {len(L)} runs, "
            f"{len(np.unique(N))} sizes, {len(np.unique(D))} token counts; fit one axis with --form floor"
        )
    if not all((values > 0).all() and np.isfinite(values).all() for values in (N, D, L)):
        raise InputError("chinchilla: want finite positive parameters, tokens and losses")
    starts = sorted((_start(N, D, L, *pair) for pair in itertools.product(START_EXPONENTS, repeat=2)), key=_cost)
    law, point = _polish(N, D, L, [start for start, _ in starts[:POLISHED]])
    random = np.random.default_rng(resampling.seed)
    replicates: list[Chinchilla] = []
    while len(replicates) < resampling.replicates:
        pick = random.integers(0, len(L), len(L))
        if min(len(np.unique(N[pick])), len(np.unique(D[pick]))) >= 3:
            replicates.append(_polish(N[pick], D[pick], L[pick], [point])[0])
    return ChinchillaFit(law, tuple(replicates), resampling)


def _cost(start: tuple[ndarray, float]) -> float:
    return start[1]


def _start(N: ndarray, D: ndarray, L: ndarray, alpha: float, beta: float) -> tuple[ndarray, float]:
    """((log A, log B, log E, alpha, beta), squared error) at fixed exponents."""
    from scipy.optimize import nnls

    columns = np.stack([N**-alpha, D**-beta, np.ones_like(L)], axis=1)
    scale = columns.max(0)
    found, error = nnls(columns / scale, L)
    return np.array([*np.log(np.maximum(found, SMALLEST) / scale), alpha, beta]), float(error)


def _polish(N: ndarray, D: ndarray, L: ndarray, starts: list[ndarray]) -> tuple[Chinchilla, ndarray]:
    """L-BFGS from each start; the best law, and its point for further starts."""
    from scipy.optimize import minimize

    mean_N, mean_D, target = np.log(N).mean(), np.log(D).mean(), np.log(L)
    n, d = np.log(N) - mean_N, np.log(D) - mean_D  # centred: coefficients and exponents become independent

    def objective(p: ndarray) -> tuple[float, ndarray]:
        terms = np.stack([p[0] - p[3] * n, p[1] - p[4] * d, np.full_like(n, p[2])])
        top = terms.max(0)
        shares = np.exp(terms - top)
        error = top + np.log(shares.sum(0)) - target
        shares = shares / shares.sum(0)
        clipped = np.clip(error, -DELTA, DELTA)
        huber = np.where(np.abs(error) <= DELTA, error**2 / 2, DELTA * (np.abs(error) - DELTA / 2))
        slope = clipped * shares
        gradient = [*slope.sum(1), -(slope[0] * n).sum(), -(slope[1] * d).sum()]
        return float(huber.sum()) / DELTA**2, np.array(
            gradient
        ) / DELTA**2  # in units of delta, far from the tolerances

    found = []
    for start in starts:
        moved = start - np.array([start[3] * mean_N, start[4] * mean_D, 0.0, 0.0, 0.0])
        found.append(minimize(objective, moved, jac=True, method="L-BFGS-B", options={"maxiter": 2000}))
    p = min(found, key=lambda result: result.fun).x
    p = p + np.array([p[3] * mean_N, p[4] * mean_D, 0.0, 0.0, 0.0])
    return Chinchilla(*(float(value) for value in (np.exp(p[2]), np.exp(p[0]), np.exp(p[1]), p[3], p[4]))), p
