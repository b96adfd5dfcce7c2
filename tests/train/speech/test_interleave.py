"""Documents of text and speech: spans, reproducible draws, and which units a span gets."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.train.speech.interleave import InterleaveConfig, Spoken, align, interleaved, speech_words
from hotplate.train.speech.voices import Word


def runs(mask: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@given(st.integers(1, 80), st.integers(0, 5), st.sampled_from(["random", "span", "poisson"]))
def test_draws_repeat_and_differ_between_epochs(count: int, epoch: int, method) -> None:
    config = InterleaveConfig(method=method)
    drawn = speech_words(count, config, "a.wav", epoch)
    assert drawn.shape == (count,) and np.array_equal(drawn, speech_words(count, config, "a.wav", epoch))


def test_epochs_and_documents_differ() -> None:
    config = InterleaveConfig()
    drawn = {speech_words(60, config, name, epoch).tobytes() for name in "abc" for epoch in range(4)}
    assert len(drawn) > 9


@given(st.integers(1, 200), st.integers(0, 50))
def test_poisson_spans_reach_the_share(count: int, epoch: int) -> None:
    """At most ceil(0.3 n) words, and at least one; long documents reach the share exactly."""
    drawn = speech_words(count, InterleaveConfig(), "x", epoch)
    wanted = int(np.ceil(0.3 * count))
    assert 1 <= drawn.sum() <= wanted
    if count >= 100:
        assert drawn.sum() >= 0.8 * wanted


def test_spans_have_the_asked_length() -> None:
    drawn = speech_words(2000, InterleaveConfig(method="span", share=0.1, span=4), "x", 0)
    assert all(length % 4 == 0 for length in runs(drawn)[:-1]) and 0.15 < drawn.mean() < 0.45
    drawn = speech_words(4000, InterleaveConfig(method="random", share=0.5), "x", 0)
    assert abs(drawn.mean() - 0.5) < 0.05
    lengths = [n for epoch in range(40) for n in runs(speech_words(400, InterleaveConfig(), "x", epoch))]
    assert 7 < np.mean(lengths) < 12


def test_poisson_spans_never_touch() -> None:
    """Lengths max(1, Poisson(1)) have mean 1.37; spans that touched would look like longer ones."""
    config = InterleaveConfig(span=1)
    lengths = [n for epoch in range(40) for n in runs(speech_words(400, config, "x", epoch))]
    assert 1.25 < np.mean(lengths) < 1.45


def test_a_span_gets_the_units_that_end_in_it() -> None:
    """Cumulative durations against word times, both ends included."""
    words = [Word("One", 0.0, 0.2), Word(" two", 0.2, 0.4), Word(" three", 0.4, 0.8)]
    units, durations = np.array([7, 8, 9, 10, 11]), np.array([3, 4, 3, 5, 5])
    first, last = align(words, durations, 0.04)
    assert (first.tolist(), last.tolist()) == ([0, 1, 2], [1, 3, 5])
    document = Spoken("a", units, [np.array([20, 21]), np.array([22]), np.array([23])], first, last)
    vocabulary = SimpleNamespace(text_ids=100, marker=lambda kind: {"speech": 900, "text": 901}[kind])

    def made(*speech: bool) -> list[int]:
        return interleaved(document, np.array(speech), vocabulary).tolist()  # type: ignore[arg-type]

    assert made(False, True, False) == [901, 20, 21, 900, 108, 109, 901, 23]
    assert made(True, True, True) == [900, 107, 108, 109, 110, 111]
    assert made(False, False, False) == [901, 20, 21, 22, 23]
    short = document._replace(first=np.array([0, 1, 2]), last=np.array([1, 1, 5]))
    assert interleaved(short, np.array([False, True, False]), vocabulary).tolist() == [901, 20, 21, 23]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one choice per word"):
        made(True)


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(ValueError, match="want 0 <= share"):
        InterleaveConfig(share=2)
