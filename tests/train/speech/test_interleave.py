"""Documents of text and speech: spans, reproducible draws, and which units a span gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.train.data.tokenizer import train_tokenizer
from hotplate.train.speech.interleave import (
    InterleaveConfig,
    MixedVocabulary,
    Segment,
    segments,
    speech_words,
)
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
    made = segments(words, units, durations, 0.04, np.array([False, True, False]))
    assert [s.text for s in made] == ["One", "", " three"]
    assert made[1].units is not None and made[1].units.tolist() == [8, 9]
    made = segments(words, units, durations, 0.04, np.array([True, True, True]))
    assert len(made) == 1 and made[0].units is not None and made[0].units.tolist() == [7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="one choice per word"):
        segments(words, units, durations, 0.04, np.array([True]))


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(ValueError, match="want 0 <= share"):
        InterleaveConfig(share=2)


def test_ids_of_both_kinds_are_apart(tmp_path) -> None:
    letters = np.random.default_rng(0).choice(list("etaoinshrdlu"), (4000, 7))
    text = " ".join("".join(row[: 2 + i % 6]) for i, row in enumerate(letters))
    tokenizer = train_tokenizer([text, "One three"], 2048, tmp_path / "t.model")
    mixed = MixedVocabulary(tokenizer, 100)
    assert (mixed.vocab, mixed.speech, mixed.text) == (2150, 2148, 2149)
    ids = mixed.encode([Segment(text="One"), Segment(units=np.array([0, 99])), Segment(text=" three")]).tolist()
    assert ids[0] == 2149 and ids[ids.index(2148) : ids.index(2148) + 4] == [2148, 2048, 2147, 2149]
    assert tokenizer.decode([i for i in ids if i < 2048]) == "One three"
