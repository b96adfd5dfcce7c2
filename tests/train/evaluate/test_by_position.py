"""Losses by position against sums over losses known in advance, and what carried state is worth beyond the window."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import TINY

from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.commands import evaluate, train
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.prepare import PrepareConfig, prepare
from hotplate.train.evaluate.by_position import CARRIED, WINDOW, bin_edges, position_losses
from hotplate.train.evaluate.perplexity import character_table, evaluate_split
from hotplate.train.evaluate.perplexity import evaluate as evaluate_batches
from hotplate.train.session import Session

SHAPE = {"layers": 1, "width": 32, "ffn": 32, "vocab": 2048}
QLSTM, GPT = (replace(PRESETS[name], **SHAPE) for name in ("qlstm-nano", "gpt-nano"))


class KnownLosses:
    """Stands for a model: a target's loss is its id / 1,000 nats, less 1 for each batch that the state has seen."""

    def __init__(self, recurrent: bool) -> None:
        self.config = SimpleNamespace(recurrent=recurrent)
        self.embedding = SimpleNamespace(weight=torch.zeros(1))

    def scores(self, batch, state=None):
        seen = 0 if state is None else state
        return batch.targets.float() / 1000 - seen, torch.zeros_like(batch.targets), seen + 1


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


def test_bins_are_fine_at_first_and_then_a_quarter_octave() -> None:
    edges = bin_edges(1000)
    assert edges[:7].tolist() == [0, 1, 2, 3, 4, 5, 6] and edges[-1] > 1000 and (np.diff(edges) > 0).all()
    assert edges[-1] / edges[-2] == pytest.approx(2**0.25, rel=0.01) and bin_edges(0)[-1] > 0


def test_known_losses_land_in_the_bins_of_their_positions(dataset: Dataset) -> None:
    split, window = dataset.split("validation"), 16
    found = position_losses(KnownLosses(True), dataset, "validation", window=window, rows=1)
    pairs = np.arange(split.tokens)
    targets, column = split.gather_targets(pairs), pairs % window
    position = pairs - split.starts[split.documents_of(pairs)]
    fresh = targets / 1000
    carried = fresh - pairs // window  # the stream's state has seen this many windows
    for curves, places in ((found.document, position), (found.place, column)):
        for low, high, count, window_nats, carried_nats in zip(
            curves.edges, curves.edges[1:], curves.targets, curves.nats[WINDOW], curves.nats[CARRIED], strict=False
        ):
            chosen = (places >= low) & (places < high)
            assert count == chosen.sum()
            assert window_nats == pytest.approx(fresh[chosen].sum(), rel=1e-5)
            assert carried_nats == pytest.approx(carried[chosen].sum(), rel=1e-4)
        assert curves.targets.sum() == split.tokens
    far, beyond = position >= window, found.beyond
    owners = split.documents_of(pairs[far])
    assert (beyond.targets, beyond.documents) == (far.sum(), len(set(owners.tolist())))
    assert beyond.difference == pytest.approx((carried - fresh)[far].mean(), rel=1e-5)
    sums = np.bincount(owners, (carried - fresh)[far])
    counts = np.bincount(owners)
    used = counts > 0
    rest = sums[used] - sums.sum() / counts.sum() * counts[used]
    error = math.sqrt(used.sum() / (used.sum() - 1) * (rest**2).sum()) / counts.sum()
    assert beyond.standard_error == pytest.approx(error, rel=1e-4)


def test_both_modes_of_a_recurrent_model_are_the_evaluations(dataset: Dataset) -> None:
    model = LanguageModel.build(QLSTM, 1)
    for resets in (False, True):
        found = position_losses(model, dataset, "validation", window=16, rows=4, resets=resets)
        carried = evaluate_split(model, dataset, "validation", window=16, rows=4, resets=resets)
        assert found.document.targets.sum() == carried.targets
        assert found.document.nats[CARRIED].sum() == pytest.approx(carried.nats, rel=1e-6)
        assert found.place.nats[CARRIED].sum() == pytest.approx(carried.nats, rel=1e-6)
    whole = position_losses(model, dataset, "validation", window=16, rows=1)
    fresh = evaluate_split(model, dataset, "validation", window=16, rows=1, carry=False)
    assert whole.place.nats[WINDOW].sum() == pytest.approx(fresh.nats, rel=1e-6)
    first = position_losses(model, dataset, "validation", window=16, rows=4, limit=1)
    assert first.document.targets.sum() == 64
    np.testing.assert_allclose(first.place.nats[CARRIED], first.place.nats[WINDOW])  # no window before the first


def test_attention_has_one_curve(dataset: Dataset) -> None:
    model = LanguageModel.build(GPT, 1)
    found = position_losses(model, dataset, "validation", window=32, rows=1, resets=True)
    plain = evaluate_split(model, dataset, "validation", window=32, rows=1, resets=True)
    assert set(found.document.nats) == {WINDOW} and found.beyond is None
    assert found.document.nats[WINDOW].sum() == pytest.approx(plain.nats, rel=1e-6)


def test_perplexity_per_character_and_byte_of_a_text_by_hand(tmp_path: Path, dataset: Dataset) -> None:
    """Non-ASCII text with losses known in advance, windows that cut characters of several byte tokens."""
    texts = ["naïve café, été – 多言語 🙂\n", "Ωμέγα and more\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    config = PrepareConfig(
        source=str(tmp_path),
        out=str(tmp_path / "set"),
        tokenizer=str(dataset.tokenizer.path),
        validation=0,
        test=0,
        workers=1,
    )
    made = prepare(config)
    ids = np.concatenate([[*dataset.tokenizer.encode(text), dataset.eod] for text in texts])
    nats = ids.sum() / 1000
    size, characters = sum(len(text.encode()) for text in texts), sum(map(len, texts))
    assert size > characters
    for window in (3, 7, 100):
        found = evaluate_split(KnownLosses(False), made, "train", window=window, rows=2)
        assert found.targets == len(ids) and found.nats == pytest.approx(nats, rel=1e-6)
        assert found.normalised_perplexity == pytest.approx(math.exp(nats / size), rel=1e-6)
        published = math.exp(nats / (characters + 2 * len("<D>")))
        assert found.normalised_perplexity_characters == pytest.approx(published, rel=1e-6)


def test_an_evaluation_of_nothing_is_refused(dataset: Dataset) -> None:
    characters = character_table(dataset, torch.device("cpu"))
    with pytest.raises(ValueError, match="no target to score"):
        evaluate_batches(KnownLosses(False), [], characters, carry=False)


def test_only_the_main_rank_measures() -> None:
    shared, model = {"validation_loss": 3.0}, object()

    def session(main: bool, share: Callable[[object], object], measure: Callable[[object], object]) -> SimpleNamespace:
        engine = SimpleNamespace(whole=lambda: model if main else None)  # only the main rank gets the model
        return SimpleNamespace(engine=engine, ranks=SimpleNamespace(main=main, share=share), _measure=measure)

    def refuse(_: object) -> dict[str, float]:
        raise AssertionError("this rank must not evaluate")

    asked: list[object] = []
    other = session(False, lambda mine: shared, refuse)
    assert Session._validate(other) == shared  # type: ignore[arg-type]
    main = session(True, lambda mine: mine, lambda given: asked.append(given) or shared)
    assert Session._validate(main) == shared and asked == [model]  # type: ignore[arg-type]


def test_the_command_evaluates_several_sets_and_by_position(
    prepared: Path, corpus: Path, tmp_path: Path, refused, capsys
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert train.main([*TINY, f"--data.source={prepared}", f"--run.folder={run}", "--budget=2steps"]) == 0
    lists = tmp_path / "texts"
    lists.mkdir()
    (lists / "page.txt").write_text("Une page française, d'à peu près rien.\n" * 40, encoding="utf-8")
    prepare(
        PrepareConfig(
            source=str(lists),
            out=str(other),
            tokenizer=str(prepared / "tokenizer.model"),
            validation=0,
            test=0,
            workers=1,
        )
    )
    result = tmp_path / "result.json"
    data = ["--data", str(prepared), str(other)]
    assert evaluate.main([str(run), "--split", "test", "train", "--limit=200", *data, f"--json={result}"]) == 0
    found = json.loads(result.read_text())["sets"]
    assert [list(each["splits"]) for each in found] == [["train", "test"], ["train"]]
    assert found[1]["splits"]["train"]["characters"] < found[1]["splits"]["train"]["bytes"]
    stem = tmp_path / "position"
    assert evaluate.main([str(run), "--split", "test", "train", *data, "--limit=99", f"--by-position={stem}"]) == 0
    assert "figure" in capsys.readouterr().out and (tmp_path / "position.png").read_bytes()[:4] == b"\x89PNG"
    curves = json.loads((tmp_path / "position.json").read_text())["positions"]
    assert [each["split"] for each in curves] == ["train", "test", "train"]
    assert sum(curves[1]["by_document_position"]["targets"]) >= 99
    assert "leave out --last-n and --carry" in refused(evaluate, str(run), "--by-position=x", "--last-n=4")
    assert "no split 'discworld'; there are test, train" in refused(evaluate, str(run), "--split", "discworld")
