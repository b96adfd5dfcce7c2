"""Evaluation against hand computation: what is counted, over which text, with how much context."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.data.dataset import Dataset
from hotplate.train.evaluate.perplexity import Metrics, character_table, evaluate_split

CPU = torch.device("cpu")
GPT = replace(PRESETS["gpt-nano"], layers=1, width=32, ffn=32, vocab=2048)
QLSTM = replace(PRESETS["qlstm-nano"], layers=1, width=32, ffn=32, vocab=2048)


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


def stream(dataset: Dataset) -> torch.Tensor:
    """The validation split as one row of ids, leading document symbol included."""
    split = dataset.split("validation")
    parts = [torch.from_numpy(split.read(document)[1]) for document in range(split.documents)]
    return torch.cat([torch.tensor([dataset.eod]), *parts])


def losses(model: LanguageModel, tokens: torch.Tensor, state=None):
    """nll of every target of a row of ids, computed from logits."""
    rows = replace(batch_of(tokens), tokens=tokens[None, :-1], targets=tokens[None, 1:])
    x, state = model.hidden(rows, state)
    return F.cross_entropy(model.logits(x)[0].double(), tokens[1:], reduction="none").detach(), state


def batch_of(tokens: torch.Tensor):
    from hotplate.model.batch import Batch

    row = tokens[None, :-1]
    zeros = torch.zeros(row.shape)
    return Batch(row, row, zeros, torch.arange(row.shape[1])[None], zeros.int())


@pytest.mark.parametrize(("window", "last_n"), [(32, 32), (32, 8), (16, 5), (64, 1)])
def test_sliding_windows_score_every_target_once_with_their_context(dataset: Dataset, window: int, last_n: int) -> None:
    model, tokens = LanguageModel.build(GPT, 1), stream(dataset)
    model = model.float()
    targets = len(tokens) - 1
    limit = None if last_n > 4 else 200
    found = evaluate_split(model, dataset, "validation", window=window, last_n=last_n, rows=4, limit=limit)
    assert found.targets == targets if limit is None else limit <= found.targets < targets
    nll = torch.empty(targets, dtype=torch.float64)
    begin, scored = 0, 0
    while scored < found.targets:
        piece = tokens[begin : begin + window + 1]
        values, _ = losses(model, piece)
        fresh = begin + len(values) - scored
        nll[scored : scored + fresh] = values[len(values) - fresh :]
        scored += fresh
        begin += last_n
    assert found.nats == pytest.approx(nll[: found.targets].sum().item(), rel=1e-5)


def test_recurrent_state_is_carried_over_the_whole_split(dataset: Dataset) -> None:
    model, tokens = LanguageModel.build(QLSTM, 1), stream(dataset)
    expected, _ = losses(model, tokens)
    carried = evaluate_split(model, dataset, "validation", window=16, rows=1)
    assert carried.targets == len(tokens) - 1
    assert carried.nats == pytest.approx(expected.sum().item(), rel=1e-5)
    fresh = evaluate_split(model, dataset, "validation", window=16, rows=1, carry=False)
    assert abs(fresh.nats - carried.nats) > 1e-4
    with pytest.raises(ValueError, match="last_n = window"):
        evaluate_split(model, dataset, "validation", window=16, last_n=4)


@pytest.mark.parametrize("config", [GPT, QLSTM], ids=["gpt", "qlstm"])
def test_with_resets_each_document_is_scored_alone(dataset: Dataset, config) -> None:
    model, split = LanguageModel.build(config, 1), dataset.split("validation")
    total = 0.0
    for document in range(split.documents):
        inputs, targets = (torch.from_numpy(part) for part in split.read(document))
        values, _ = losses(model, torch.cat([inputs, targets[-1:]]))
        total += values.sum().item()
    window = int(split.lengths.max())
    assert window <= 512 - 64  # so that a scored target's whole document is in its window
    found = evaluate_split(
        model, dataset, "validation", window=512, last_n=None if config is QLSTM else 64, rows=1, resets=True
    )
    assert found.nats == pytest.approx(total, rel=1e-5)


def test_bytes_and_characters_are_those_of_the_text(dataset: Dataset) -> None:
    model, split = LanguageModel.build(GPT, 1), dataset.split("validation")
    found = evaluate_split(model, dataset, "validation", window=32)
    texts = [dataset.tokenizer.decode(split.read(document)[1][:-1]) for document in range(split.documents)]
    assert found.bytes == sum(len(text.encode()) for text in texts) == split.bytes
    assert found.characters == sum(len(text) for text in texts) + 3 * split.documents


def test_characters_differ_from_bytes_exactly_by_continuation_bytes(dataset: Dataset) -> None:
    text = "naïve café, été – 多言語 🙂\n"
    ids = torch.from_numpy(dataset.tokenizer.encode(text))
    table = character_table(dataset, CPU)
    lengths = torch.from_numpy(dataset.tokenizer.byte_lengths())
    assert int(table[ids].sum()) == len(text)
    assert int(lengths[ids].sum()) == len(text.encode())
    cut = len(ids) // 2  # also where a character's bytes lie on both sides
    assert int(table[ids[:cut]].sum() + table[ids[cut:]].sum()) == len(text)


def test_measures_follow_from_the_totals() -> None:
    metrics = Metrics(nats=600.0, targets=200, bytes=800, characters=750, top1=50, top10=100)
    assert metrics.loss == 3.0 and metrics.perplexity == pytest.approx(math.exp(3))
    assert metrics.bits_per_byte == pytest.approx(0.75 / math.log(2))
    assert metrics.normalised_perplexity == pytest.approx(math.exp(0.75))
    assert metrics.normalised_perplexity_characters == pytest.approx(math.exp(0.8))
    assert metrics.to_dict()["top10_accuracy"] == 0.5


def test_ranks_count_better_logits(dataset: Dataset) -> None:
    model, tokens = LanguageModel.build(GPT, 1), stream(dataset)[:65]
    x, _ = model.hidden(replace(batch_of(tokens), tokens=tokens[None, :-1]))
    logits = model.logits(x)[0]
    top10 = (logits.topk(10).indices == tokens[1:, None]).any(1).sum()
    found = evaluate_split(model, dataset, "validation", window=64, rows=1, limit=1)
    assert found.targets == 64 and found.top10 == int(top10)
