"""Measures: pair folders, scores, ties and bounds, auto-BLEU."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.model.rows import Rows
from hotplate.train.errors import InputError
from hotplate.train.settings import merge
from hotplate.train.speech.evaluation import Speaking
from hotplate.train.speech.layouts import read_pairs
from hotplate.train.speech.likelihood import compare, sequence_scores
from hotplate.train.speech.repetition import auto_bleu, text_tokens


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(pairs) -> list[tuple[str, str, str]]:
    return [(pair.category, pair.right.name, pair.wrong.name) for pair in pairs]


def test_folders_of_numbered_pairs(tmp_path: Path) -> None:
    """Sorted as numbers, not as text; categories are sub-folders; equal numbers pair by name."""
    flat = touch(tmp_path / "sc", "10_a.wav", "2_b.wav", "3_a.wav", "11_z.wav")
    assert names(read_pairs(flat, "storycloze")) == [("all", "2_b.wav", "3_a.wav"), ("all", "10_a.wav", "11_z.wav")]
    blimp = touch(tmp_path / "blimp", "agree/0+x.wav", "agree/1+y.wav", "island/5+q.wav", "island/5+r.wav")
    assert names(read_pairs(blimp, "sblimp")) == [("agree", "0+x.wav", "1+y.wav"), ("island", "5+q.wav", "5+r.wav")]
    with pytest.raises(InputError, match="want a number before '_'"):
        read_pairs(blimp, "swuggy")
    with pytest.raises(InputError, match="5 files, want pairs"):
        read_pairs(touch(flat, "12_q.wav"), "storycloze")
    with pytest.raises(InputError, match=r"no \.wav"):
        read_pairs(touch(tmp_path / "none", "a.txt"), "sblimp")


def test_folders_of_salmon(tmp_path: Path) -> None:
    folder = touch(
        tmp_path, *(f"{part}/sample_{i}_{side}.wav" for part in ("p", "q") for i in (2, 10) for side in "ba")
    )
    found = names(read_pairs(folder, "salmon"))
    assert found[:2] == [("p", "sample_2_a.wav", "sample_2_b.wav"), ("p", "sample_10_a.wav", "sample_10_b.wav")]
    with pytest.raises(InputError, match="3 files of index 2"):
        read_pairs(touch(folder, "p/sample_2_c.wav"), "salmon")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    tiny = {"layers": 2, "width": 32, "ffn": 64, "vocab": 22, "mixer": {"heads": 2, "kv_heads": 1, "head_width": 16}}
    return LanguageModel.build(merge(PRESETS["decoder-nano"], tiny, "test"), seed=1)


def sequences(utterances: list[np.ndarray]) -> list[np.ndarray]:
    return [Speaking.__dict__["sequence"](SimpleNamespace(mixed=None), units) for units in utterances]


def test_scores_are_means_over_units_and_the_end(model: LanguageModel) -> None:
    """Against log-softmax by hand; whatever the batch, and without touching the caller's units."""
    random = np.random.default_rng(0)
    utterances = [random.integers(0, 20, size).astype(np.uint16) for size in (1, 5, 17, 40, 5)]
    utterances[1][:2] = 0  # a unit is never taken for padding
    copies = [units.copy() for units in utterances]
    ids = sequences(utterances)
    means, sums = sequence_scores(model, ids), sequence_scores(model, ids, total=True)
    assert all(np.array_equal(a, b) for a, b in zip(utterances, copies, strict=True))
    assert sequence_scores(model, ids, tokens=1) == pytest.approx(means, rel=1e-5)
    for units, mean, total in zip(utterances, means, sums, strict=True):
        ids = torch.tensor([1, *(units.astype(int) + 2).tolist(), 1])
        with torch.no_grad():
            x, _ = model.features(ids[None, :-1], torch.arange(len(ids) - 1)[None], Rows(), None)
            want = model.logits(x)[0].double().log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        assert total == pytest.approx(float(want.sum()), rel=1e-5)
        assert mean == pytest.approx(total / (len(units) + 1), rel=1e-12)


def test_ties_count_half_and_chance_is_bounded() -> None:
    found = compare([1.0, 2.0, 3.0, 5.0], [0.0, 2.0, 4.0, 1.0])
    assert (found.accuracy, found.ties) == (0.625, 1)
    facts = compare([1.0] * 70 + [0.0] * 30, [0.5] * 100).to_dict()
    assert facts["accuracy"] == 0.7
    # Clopper-Pearson of 70 in 100, and the upper tail of Binomial(100, 1/2) from 70, by summation
    assert facts["low"] == pytest.approx(0.6002, abs=1e-4) and facts["high"] == pytest.approx(0.7876, abs=1e-4)
    assert facts["p_value"] == pytest.approx(sum(math.comb(100, k) for k in range(70, 101)) / 2**100)
    for right, wrong in (([], []), ([1.0], [1.0, 2.0]), ([math.nan], [0.0])):
        with pytest.raises(ValueError, match="compare"):
            compare(right, wrong)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4))
def test_auto_bleu_is_the_share_of_repeated_places(tokens: list[int], n: int) -> None:
    grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    repeated = sum(any(g == h for j, h in enumerate(grams) if j != i) for i, g in enumerate(grams))
    assert auto_bleu(tokens, n) == (repeated / len(grams) if grams else 0)


def test_auto_bleu_of_text() -> None:
    want = ["I", "did", "n't", ",", "did", "I", "?", "It", "'s", "him", "."]
    assert text_tokens("I didn't, did I? It's him.") == want
    assert auto_bleu(text_tokens("the cat and the cat")) == 0.5
