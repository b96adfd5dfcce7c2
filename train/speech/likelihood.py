"""Pairs of utterances under a trained model: how often is the right one the likelier?

S utterances, T positions. The score of an utterance of units u1..un is the mean over n + 1 positions of
log p(u1 | <S>), ..., log p(un | ...), log p(<S> | ...): the end counts, the beginning does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from hotplate.model.batch import Batch
from hotplate.model.lm import LanguageModel
from hotplate.train.data.units import BOUNDARY, FIRST_UNIT

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


def unit_scores(
    model: LanguageModel, utterances: Sequence[np.ndarray], *, total: bool = False, tokens: int = 16_384
) -> list[float]:
    """Mean (`total`: summed) log-probability in nats of each utterance of units (integers [n]), its end included.

    At most about `tokens` positions are in a batch; an utterance's score does not depend on its batch.
    """
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i]))
    scores = [0.0] * len(utterances)
    device = model.embedding.weight.device
    for chosen in _batches(order, utterances, tokens):
        batch = _batch([utterances[i] for i in chosen]).to(device)
        nll, _, _ = model.scores(batch)
        sums = -(nll.double() * batch.weights).sum(dim=1)
        found = sums if total else sums / batch.weights.sum(dim=1)
        for place, score in zip(chosen, found.tolist(), strict=True):
            scores[place] = score
    return scores


def _batches(order: list[int], utterances: Sequence[np.ndarray], tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in order:
        if batch and (len(utterances[number]) + 1) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _batch(utterances: list[np.ndarray]) -> Batch:
    """One utterance a row; causality keeps what follows it from its score, weight 0 leaves it out."""
    longest = max(map(len, utterances)) + 1
    inputs = torch.full((len(utterances), longest), BOUNDARY)
    targets = inputs.clone()
    weights = torch.zeros(inputs.shape)
    for row, units in enumerate(utterances):
        ids = torch.from_numpy(np.asarray(units, np.int64)) + FIRST_UNIT
        inputs[row, 1 : len(ids) + 1], targets[row, : len(ids)] = ids, ids
        weights[row, : len(ids) + 1] = 1
    return Batch(
        tokens=inputs,
        targets=targets,
        weights=weights,
        positions=torch.arange(longest).expand(inputs.shape).contiguous(),
        target_bytes=weights.int(),
    )
