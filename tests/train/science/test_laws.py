"""Scaling laws: published golden data, recovery of known laws, intervals that cover, and refusals."""

import numpy as np
import pytest

from hotplate.train.errors import InputError
from hotplate.train.science.chinchilla import Chinchilla, fit_chinchilla
from hotplate.train.science.laws import PowerLaw, Resampling, fit, solve

# nanoLM (2304.06875), its repository: loss at 20k steps of widths 128 ... 3072 under muP, N in millions.
N = np.array([8.53, 21.56, 39.09, 61.12, 87.65, 118.68, 154.21, 194.24, 676.48, 1446.72])
LOSS = np.array([3.9181, 3.6054, 3.4431, 3.3542, 3.2902, 3.2478, 3.2240, 3.1797, 3.0854, 3.0425])
QUICK = Resampling(replicates=200)


@pytest.mark.parametrize(
    ("count", "a", "b", "c"),
    [(5, 2.41652, -0.3745, 2.83606), (7, 2.46943, -0.42311, 2.9233), (8, 2.44686, -0.40884, 2.90112)],
)
def test_nanolm_fits_are_reproduced(count: int, a: float, b: float, c: float) -> None:
    law = solve(N[:count], LOSS[:count], "floor")
    assert (float(law.a), float(law.b), float(law.c)) == pytest.approx((a, b, c), abs=2e-5)


def test_nanolm_widths_held_out_are_predicted_within_a_hundredth() -> None:
    found = fit(N[:7], LOSS[:7], "floor", QUICK)
    errors = np.abs(found.law(N[7:]) - LOSS[7:])
    assert errors.max() <= 0.01
    assert errors == pytest.approx([0.0093, 0.0054, 0.0056], abs=1e-4)


@pytest.mark.parametrize("c", [0.0, 1.7])
@pytest.mark.parametrize("x", [np.geomspace(1e-4, 1e-2, 6), np.geomspace(1e18, 1e23, 6)], ids=["hours", "flops"])
def test_exact_laws_are_recovered_on_any_scale(x: np.ndarray, c: float) -> None:
    true = PowerLaw(np.array(3.0 / x[0] ** -0.12), np.array(-0.12), np.array(c))
    found = solve(x, true(x), "floor" if c else "power")
    assert float(found.b) == pytest.approx(-0.12, rel=1e-4)
    assert found(np.array([x[-1] * 100])) == pytest.approx(true(x[-1] * 100), rel=1e-4)


def test_many_fits_at_once_are_the_single_ones() -> None:
    random = np.random.default_rng(0)
    x, Y = np.geomspace(1, 64, 7), 2 + np.geomspace(1, 64, 7) ** -0.4 * (1 + random.normal(0, 0.01, (5, 7)))
    together = solve(x, Y, "floor")
    for row, y in enumerate(Y):
        alone = solve(x, y, "floor")
        assert (together.a[row], together.b[row], together.c[row]) == pytest.approx(
            (float(alone.a), float(alone.b), float(alone.c)), rel=1e-9
        )


@pytest.mark.parametrize(("form", "c"), [("power", 0.0), ("floor", 2.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(form, c: float) -> None:
    """Four classes, two seeds, 1% noise, extrapolated fourfold. At 90%, of 120: outside 97 .. 119 by chance < 1e-3."""
    random, x = np.random.default_rng(1), np.repeat([1.0, 2.0, 4.0, 8.0], 2)
    true = PowerLaw(np.array(3.0), np.array(-0.1 if form == "power" else -0.5), np.array(c))
    held = 0
    for trial in range(120):
        found = fit(x, true(x) * (1 + random.normal(0, 0.01, 8)), form, Resampling(replicates=200, seed=trial))
        low, high = found.interval(32.0)
        held += bool(low[0] <= true(32.0)[0] <= high[0])
    assert 97 <= held <= 119


def test_resampling_runs_or_seeds_widens_with_their_noise() -> None:
    x, random = np.repeat([1.0, 2.0, 4.0], 3), np.random.default_rng(2)
    noise = random.normal(0, 1, 9)
    for over in ("runs", "seeds"):
        widths = []
        for scale in (1e-4, 1e-2):
            found = fit(x, 3 * x**-0.2 * (1 + scale * noise), "power", Resampling(replicates=200, over=over))
            low, high = found.parameter_interval("b")
            assert low < float(found.law.b) < high
            widths.append(high - low)
        assert widths[1] == pytest.approx(100 * widths[0], rel=0.1)


def test_a_law_of_tokens_becomes_one_of_hours() -> None:
    law = PowerLaw(np.array(5.0), np.array(-0.1), np.array(1.0))
    assert law.rescaled(1e6)(7.0) == pytest.approx(law(7e6))


@pytest.mark.parametrize(
    ("x", "y", "form", "message"),
    [
        ([], [], "power", "at least 3 runs at 2 or more places, got 0 at 0"),
        ([1.0], [2.0], "power", "got 1 at 1"),
        ([1.0, 1.0, 1.0], [2.0, 2.1, 2.2], "power", "got 3 at 1"),
        ([1.0, 1.0, 2.0, 2.0], [3.0, 3.1, 2.0, 2.1], "floor", "got 4 at 2; add classes or seeds, or use power"),
        ([1.0, 2.0, 4.0], [2.0, 2.1, 2.2], "power", "do not fall: 2 at 1, 2.2 at 4"),
        ([1.0, 2.0, 0.0], [2.0, 1.9, 1.8], "power", "finite positive"),
        ([1.0, 2.0, 4.0], [2.0, float("nan"), 1.8], "power", "finite positive"),
    ],
)
def test_points_without_a_law_are_refused(x, y, form, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(np.array(x), np.array(y), form, QUICK)


def test_seeds_need_seeds_and_bad_settings_are_refused() -> None:
    x = np.array([1.0, 2.0, 4.0])
    with pytest.raises(InputError, match="two or more runs of every class"):
        fit(x, 1 / x, "power", Resampling(over="seeds"))
    with pytest.raises(ValueError, match="0 < level < 1"):
        Resampling(level=1.5)


GRID_N, GRID_D = np.repeat([5e6, 2e7, 8e7, 3e8], 4), np.tile([1e8, 4e8, 1.6e9, 6.4e9], 4)
HOFFMANN = Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28)  # arXiv 2203.15556, equation 10


def test_chinchilla_recovers_its_own_law() -> None:
    found = fit_chinchilla(GRID_N, GRID_D, HOFFMANN(GRID_N, GRID_D), Resampling(replicates=20)).law
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(HOFFMANN, name), rel=1e-3)


def test_chinchilla_shrugs_off_one_bad_run_and_brackets_its_prediction() -> None:
    random = np.random.default_rng(3)
    loss = HOFFMANN(GRID_N, GRID_D) * np.exp(random.normal(0, 0.001, 16))
    loss[5] *= 1.2
    found = fit_chinchilla(GRID_N, GRID_D, loss, Resampling(replicates=30))
    value, low, high = found.predict(1e9, 2e10)
    assert value == pytest.approx(HOFFMANN(1e9, 2e10), rel=0.01)
    assert low <= value <= high


def test_chinchilla_optimum_is_the_lowest_loss_of_its_flops() -> None:
    n, d = HOFFMANN.optimum(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    others = np.geomspace(n / 10, n * 10, 2001)
    assert HOFFMANN(n, d) <= HOFFMANN(others, 1e21 / 6 / others).min() + 1e-12


def test_chinchilla_needs_a_grid() -> None:
    with pytest.raises(InputError, match="six or more runs over three or more sizes"):
        fit_chinchilla(GRID_N[:8], GRID_D[:8], HOFFMANN(GRID_N[:8], GRID_D[:8]), QUICK)
