"""Pairs of sequences under a trained model: how often is the right one the likelier?

S sequences, T positions, V ids. The score of an utterance of units u1..un is the mean over n + 1 positions of
log p(u1 | <S>), ..., log p(un | ...), log p(<S> | ...): the end counts, the beginning does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from hotplate.model.batch import Batch
from hotplate.model.lm import LanguageModel

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs whose right side scores higher; a tie counts one half.

    `low`, `high`: Clopper and Pearson's 95% interval; `p_value`: of so many wins or more by coin tosses. Both count
    a half win as none.
    """

    pairs: int
    wins: float
    ties: int

    @property
    def accuracy(self) -> float:
        return self.wins / self.pairs

    def to_dict(self) -> dict[str, Any]:
        test = binomtest(int(self.wins), self.pairs, 0.5, alternative="greater")
        interval = binomtest(int(self.wins), self.pairs).proportion_ci(CONFIDENCE)
        return {
            **asdict(self),
            "accuracy": self.accuracy,
            "low": float(interval.low),
            "high": float(interval.high),
            "p_value": float(test.pvalue),
        }


def compare(right: Sequence[float], wrong: Sequence[float]) -> Accuracy:
    """ValueError unless both have the same number of scores, at least one, all finite."""
    a, b = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"compare: want equally many finite scores, got {a.shape} and {b.shape}")
    ties = int((a == b).sum())
    return Accuracy(len(a), float((a > b).sum()) + ties / 2, ties)


@torch.no_grad()
def sequence_scores(
    model: LanguageModel,
    sequences: Sequence[np.ndarray],
    *,
    given: int = 1,
    allowed: Tensor | None = None,
    total: bool = False,
    tokens: int = 16_384,
) -> list[float]:
    """Mean (`total`: summed) log-probability in nats of the ids of each sequence (int64 [n]) after the first `given`.

    `allowed` bool [V]: the probabilities are those among these ids alone. At most about `tokens` positions are in a
    batch; a sequence's score does not depend on its batch. ValueError for a sequence of no more than `given` ids.
    """
    if given < 1 or any(len(ids) <= given for ids in sequences):
        raise ValueError(f"sequence_scores: want more than given = {given} >= 1 ids in every sequence")
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    device = model.embedding.weight.device
    for chosen in _batches(order, sequences, tokens):
        batch = _batch([sequences[i] for i in chosen], given).to(device)
        nll = model.scores(batch)[0] if allowed is None else _restricted(model, batch, allowed.to(device))
        sums = -torch.where(batch.weights > 0, nll.double(), 0.0).sum(dim=1)
        found = sums if total else sums / batch.weights.sum(dim=1)
        for place, score in zip(chosen, found.tolist(), strict=True):
            scores[place] = score
    return scores


def _restricted(model: LanguageModel, batch: Batch, allowed: Tensor) -> Tensor:
    """Negative log-probability of each target [B, T] among the ids of `allowed`."""
    logits = model.logits(model.hidden(batch)[0]).float().masked_fill(~allowed, float("-inf"))
    return -logits.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]


def _batches(order: list[int], sequences: Sequence[np.ndarray], tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in order:
        if batch and (len(sequences[number]) - 1) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _batch(sequences: list[np.ndarray], given: int) -> Batch:
    """One sequence a row; causality keeps what follows it from its score, weight 0 leaves it out."""
    longest = max(map(len, sequences)) - 1
    inputs = torch.zeros((len(sequences), longest), dtype=torch.int64)
    targets = inputs.clone()
    weights = torch.zeros(inputs.shape)
    for row, sequence in enumerate(sequences):
        ids = torch.from_numpy(np.asarray(sequence, np.int64))
        inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        weights[row, given - 1 : len(ids) - 1] = 1
    return Batch(
        tokens=inputs,
        targets=targets,
        weights=weights,
        positions=torch.arange(longest).expand(inputs.shape).contiguous(),
        target_bytes=weights.int(),
    )
