"""Preference optimisation against a padded float64 form, and as runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, build
from runs import interrupted_after, same

from hotplate.model.batch import Batch
from hotplate.train.data.pairs import Pair, PairSource
from hotplate.train.errors import InputError
from hotplate.train.preference import PreferenceConfig, PreferenceLoss
from hotplate.train.reference import reference_scores
from hotplate.train.sinks import read_records

EOD, VOCAB = 3, 37


def invented_pairs(count: int, seed: int = 0, longest: int = 7) -> list[Pair]:
    random = np.random.default_rng(seed)
    return [Pair(*(random.integers(4, VOCAB, random.integers(1, longest)) for _ in range(3))) for _ in range(count)]


def make_source(pairs: list[Pair], rows: int = 3, window: int = 32, shared: bool = True) -> PairSource:
    return PairSource(pairs, rows=rows, window=window, seed=5, eod=EOD, shared=shared, where="pairs")


def naive_scores(model, pairs: list[Pair]) -> torch.Tensor:
    """[pairs, 2] by one padded forward pass: log-softmax, gather, mask, sum."""
    sequences = [
        [EOD, *pair.prompt.tolist(), *continuation.tolist(), EOD]
        for pair in pairs
        for continuation in (pair.chosen, pair.rejected)
    ]
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
    positions = torch.arange(longest - 1).expand(len(ids), -1)
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(ids[:, 1:].shape), positions, torch.zeros(1))
    logps = F.log_softmax(model.logits(model.hidden(batch)[0]), -1)
    taken = logps.gather(-1, ids[:, 1:, None])[..., 0]
    mask = torch.zeros_like(taken)
    for n, sequence in enumerate(sequences):
        mask[n, len(pairs[n // 2].prompt) : len(sequence) - 1] = 1
    return (taken * mask).sum(1).view(-1, 2)


def naive_loss(config: PreferenceConfig, scores: torch.Tensor, reference: torch.Tensor, pairs: list[Pair]):
    lengths = torch.tensor([[len(p.chosen) + 1, len(p.rejected) + 1] for p in pairs], dtype=scores.dtype)
    s, r = scores, reference if config.loss != "simpo" else torch.zeros_like(reference)
    if config.per_token or config.loss == "simpo":
        s, r = s / lengths, r / lengths
    h = (s[:, 0] - r[:, 0]) - (s[:, 1] - r[:, 1])
    b, e = config.beta, config.label_smoothing
    loss = {
        "sigmoid": lambda: -(1 - e) * torch.log(torch.sigmoid(b * h)) - e * torch.log(torch.sigmoid(-b * h)),
        "ipo": lambda: (h - 1 / (2 * b)) ** 2,
        "simpo": lambda: -torch.log(torch.sigmoid(b * h - config.margin)),
    }[config.loss]()
    return (loss - config.nll * scores[:, 0] / lengths[:, 0]).sum()


CONFIGS = {
    "dpo": PreferenceConfig(),
    "smoothed": PreferenceConfig(beta=0.5, label_smoothing=0.1, nll=0.2),
    "per-token": PreferenceConfig(per_token=True, beta=1.0),
    "ipo": PreferenceConfig(loss="ipo", beta=0.3),
    "simpo": PreferenceConfig(loss="simpo", beta=2.0, margin=0.4),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model", ["gpt", "decoder", "lstm"])
def test_scores_loss_and_gradients_are_those_of_the_padded_form(name: str, model: str) -> None:
    config, policy = CONFIGS[name], build(TINY[model])
    pairs = invented_pairs(9)
    pairs[4] = replace(pairs[4], prompt=np.zeros(0, np.int64))
    source = make_source(pairs, shared=model != "lstm")
    source.reference = np.random.default_rng(1).normal(-20, 1, (9, 2)).astype(np.float32)
    ours, count, seen = torch.zeros((), dtype=torch.float64), 0.0, []
    for row in range(source.plan_rows):
        batch, numbers = source.of_rows([row])
        loss, pairs_here, _ = PreferenceLoss(config)(policy(batch), batch)
        ours, count, seen = ours + loss, count + pairs_here.item(), [*seen, *numbers.tolist()]
    assert count == 9 and sorted(seen) == list(range(9)) and source.plan_rows > 1
    gradients = torch.autograd.grad(ours, list(policy.parameters()))
    reference = torch.from_numpy(source.reference).double()
    theirs = naive_loss(config, naive_scores(policy, pairs), reference, pairs)
    expected = torch.autograd.grad(theirs, list(policy.parameters()))
    tolerance = 1e-5 if model == "decoder" else 1e-9  # rotation angles are fp32
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_the_first_loss_is_exactly_ln_2_and_reference_scores_are_the_models() -> None:
    policy = build(TINY["gpt"], torch.float32)
    pairs = invented_pairs(7)
    source = make_source(pairs)
    source.reference = reference_scores(policy, source, rows=2)
    torch.testing.assert_close(
        torch.from_numpy(source.reference), naive_scores(policy, pairs).detach(), rtol=1e-5, atol=1e-5
    )
    batch, numbers = source.of_rows(range(source.plan_rows))
    loss, count, facts = PreferenceLoss(PreferenceConfig())(policy(batch), batch)
    assert (loss / count).item() == pytest.approx(math.log(2), abs=1e-6) and count == len(numbers)
    assert facts[1].item() == pytest.approx(0, abs=1e-4)


def test_batches_depend_on_seed_step_and_rows_alone() -> None:
    source = make_source(invented_pairs(20), rows=4)
    whole = source.batch(3, range(4))
    parts = [source.batch(3, range(2)), source.batch(3, range(2, 4))]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert len(whole.reference) == sum(len(part.reference) for part in parts)
    assert source.fill > 0.7 and whole.weights.sum() == (whole.sequences < whole.tokens.numel()).sum()


@given(st.lists(st.tuples(*[st.integers(low, 6) for low in (0, 1, 1)]), min_size=1, max_size=12))
def test_a_prompt_is_in_its_row_once_and_attention_sees_every_sequence_whole(sizes) -> None:
    pairs = [Pair(*(np.full(size, 4 + n, np.int64) for size in three)) for n, three in enumerate(sizes)]
    shared, apart = make_source(pairs, window=40), make_source(pairs, window=40, shared=False)
    places = sum(pair.size(shared=True) for pair in pairs)
    assert places == sum(len(p.prompt) + len(p.chosen) + len(p.rejected) + 2 for p in pairs)
    assert shared.fill == places / (shared.plan_rows * 40) and shared.plan_rows <= apart.plan_rows
    for row in range(shared.plan_rows):
        batch, numbers = shared.of_rows([row])
        assert batch.spread is not None and batch.gather is not None and batch.cu_seqlens is not None
        seen = batch.tokens.flatten()[batch.spread.flatten()]
        ends = torch.unique(batch.cu_seqlens).tolist()
        whole = [pairs[n].sequence(y, EOD)[:-1] for n in numbers for y in (pairs[n].chosen, pairs[n].rejected)]
        for begin, end, wanted in zip(ends, ends[1:], whole, strict=False):
            assert seen[begin:end].tolist() == wanted.tolist()
            assert batch.positions.flatten()[batch.spread.flatten()[begin:end]].tolist() == list(range(end - begin))
        used = sum(pairs[n].size(shared=True) for n in numbers)
        back = batch.spread.flatten()[batch.gather.flatten()[:used]]
        assert back.tolist() == list(range(used))


def test_recurrent_layers_refuse_shared_beginnings() -> None:
    batch, _ = make_source(invented_pairs(3)).of_rows([0])
    with pytest.raises(ValueError, match="without shared beginnings"):
        build(TINY["lstm"])(batch)


def write(path: Path, pairs: list[Pair]) -> Path:
    lines = [
        json.dumps({"prompt": p.prompt.tolist(), "chosen": p.chosen.tolist(), "rejected": p.rejected.tolist()})
        for p in pairs
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_run_learns_the_preference_and_resumes(train_tiny, tmp_path: Path) -> None:
    start, whole, broken = tmp_path / "start", tmp_path / "whole", tmp_path / "broken"
    assert train_tiny("--budget=3steps", f"--run.folder={start}", "--evaluation.every=0") == 0
    pairs = write(tmp_path / "pairs.jsonl", [replace_last(p) for p in invented_pairs(40, longest=5)])
    flags = [
        f"--preference.pairs={pairs}",
        f"--run.start={start}",
        "--budget=24steps",
        "--optimizer.lr=3e-3",
        "--schedule.kind=inverse_sqrt",
        "--schedule.warmup=0.1",
        "--evaluation.every=0",
        "--run.checkpoint-every=0.25",
        "--batch=4",
    ]
    assert train_tiny(*flags, f"--run.folder={whole}") == 0
    records = [r for r in read_records(whole / "metrics.jsonl") if "loss" in r]
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert records[-1]["loss"] < 0.5 and records[-1]["preferred"] > 0.9
    assert records[-1]["reward_margin"] > records[0]["reward_margin"] + 0.5

    with interrupted_after(12):
        train_tiny(*flags, f"--run.folder={broken}")
    assert train_tiny(*flags, f"--run.folder={broken}", "--run.resume=auto") == 0
    same(whole, broken)


def replace_last(pair: Pair) -> Pair:
    """What is preferred ends in 5, the other in 6."""
    return replace(pair, chosen=np.append(pair.chosen, 5), rejected=np.append(pair.rejected, 6))


def test_bad_pairs_are_one_clear_error(train_tiny, tmp_path: Path) -> None:
    start = tmp_path / "start"
    assert train_tiny("--budget=1steps", f"--run.folder={start}", "--evaluation.every=0") == 0
    good = '{"prompt": [4], "chosen": [5], "rejected": [6]}'
    cases = {
        "line 2: not JSON": f"{good}\n{{oops",
        "line 1: want an object with prompt, chosen, rejected": '{"prompt": [4]}',
        "line 1: an empty continuation": '{"prompt": [4], "chosen": [], "rejected": [6]}',
        "line 1: chosen: ids 99999..99999": '{"prompt": [4], "chosen": [99999], "rejected": [6]}',
        "line 1: rejected: want text, token ids or an object": '{"prompt": [4], "chosen": [5], "rejected": 7}',
        "holds no pair": "\n",
        "pair 1 takes": json.dumps({"prompt": [4] * 40, "chosen": [5], "rejected": [6]}),
    }
    path = tmp_path / "pairs.jsonl"
    for message, text in cases.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            train_tiny("--budget=1steps", f"--preference.pairs={path}", f"--run.start={start}")
    path.write_text(good, encoding="utf-8")
    with pytest.raises(InputError, match="want --run.start"):
        train_tiny("--budget=1steps", f"--preference.pairs={path}")
    with pytest.raises(ValueError, match="label_smoothing in 0..0.5"):
        PreferenceConfig(label_smoothing=0.7)
