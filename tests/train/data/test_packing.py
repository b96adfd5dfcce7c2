import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.train.data.packing import best_fit_decreasing, plan_rows
from hotplate.train.data.permutation import permute


def _check_plan(lengths, window, seed=0):
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    plan = plan_rows(starts, window, seed)
    covered = np.concatenate([np.arange(b, b + s) for b, s in zip(plan.begins, plan.sizes, strict=True)])
    assert np.array_equal(np.sort(covered), np.arange(starts[-1]))  # every pair exactly once
    last = plan.begins + plan.sizes - 1
    owner = np.searchsorted(starts, plan.begins, side="right")
    assert (owner == np.searchsorted(starts, last, side="right")).all()  # no piece across documents
    assert plan.first[0] == 0 and plan.first[-1] == len(plan.begins) and (np.diff(plan.first) >= 1).all()
    used = np.add.reduceat(plan.sizes, plan.first[:-1])
    assert used.max() <= window and plan.sizes.min() >= 1
    assert (window - np.sort(used)[1:] <= window // 256).all()  # all rows but one are full
    if plan.rows >= 200:
        assert plan.fill >= 0.99
    return plan


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    window=st.integers(1, 130),
    seed=st.integers(0, 9),
)
def test_plan_of_any_lengths(lengths, window, seed):
    _check_plan(lengths, window, seed)


@pytest.mark.parametrize("window", [64, 512, 1000])
@pytest.mark.parametrize("kind", ["0.6", "0.5+", "1/3+", "window+1", "window", "tiny", "books", "mixed"])
def test_fill_of_adversarial_lengths(kind, window):
    rng = np.random.default_rng(0)
    lengths = {
        "0.6": np.full(2000, int(0.6 * window)),
        "0.5+": np.full(2000, window // 2 + 1),
        "1/3+": np.full(2000, window // 3 + 1),
        "window+1": np.full(2000, window + 1),
        "window": np.full(2000, window),
        "tiny": rng.integers(2, 6, 100_000),
        "books": rng.integers(20 * window, 90 * window, 40),
        "mixed": np.concatenate([np.full(999, 2), np.full(999, window - 1), np.full(7, 100 * window)]),
    }[kind]
    assert _check_plan(lengths, window).fill >= 0.99


def test_documents_that_fit_exactly_are_not_cut():
    lengths = [60, 40] * 300 + [100] * 10 + [25] * 80
    plan = _check_plan(lengths, 100)
    assert plan.fill == 1 and len(plan.sizes) == len(lengths)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), max_size=80) | st.lists(st.sampled_from([20, 11, 5, 3]), max_size=80),
    window=st.integers(20, 30),
)
def test_best_fit_uses_as_many_rows_as_one_by_one(sizes, window):
    sizes = sorted(sizes, reverse=True)
    room: list[int] = []
    for size in sizes:
        fitting = [place for place, left in enumerate(room) if left >= size]
        if fitting:
            room[min(fitting, key=lambda place: room[place])] -= size
        else:
            room.append(window - size)
    row = best_fit_decreasing(np.array(sizes, np.int64), window)
    used = np.bincount(row, weights=sizes) if sizes else np.zeros(0)
    assert sorted(window - used) == sorted(room)


def test_seed_changes_which_documents_share_a_row():
    plans = [_check_plan(np.full(400, 50), 100, seed) for seed in (0, 1, 0)]
    assert np.array_equal(plans[0].begins, plans[2].begins)
    assert not np.array_equal(plans[0].begins, plans[1].begins)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_permutation_is_one(n, seed, epoch):
    images = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(images), np.arange(n))
    assert permute(np.array([n - 1]), n, seed, epoch)[0] == images[-1]


def test_permutations_differ_and_spread():
    n = 10_000
    images = [permute(np.arange(n), n, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (images[a] == images[b]).mean() < 0.01
    for image in images:
        assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05
        assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    assert permute(np.arange(5), 5, 3, 7).tolist() == permute(np.arange(5), 5, 3, 7).tolist()
