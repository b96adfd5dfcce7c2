"""Normalised perplexity: how well a model predicts text, comparable over tokenisers.

nats   = sum over all evaluated targets of -log p(target)
per byte:      exp(nats / UTF-8 bytes of the targets' text)        bits per byte = nats / bytes / ln 2
per character: exp(nats / characters), as Languini Kitchen publishes it (its section 1.4): Python characters of the
               decoded text, and each document symbol counts as the three characters `<D>`
per token:     exp(nats / targets)

Sums are float64 and int64. Byte and character counts are per token id, so text cut anywhere counts exactly.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hotplate.model.batch import Batch
from hotplate.model.lm import LanguageModel
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.windows import WindowSource

DOCUMENT_SYMBOL_CHARACTERS = 3  # `<D>` in the published metric


@dataclass(frozen=True)
class Metrics:
    """Totals of an evaluation, and the measures that follow from them."""

    nats: float
    targets: int
    bytes: int
    characters: int
    top1: int
    top10: int

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.bytes / math.log(2)

    @property
    def normalised_perplexity(self) -> float:
        """Per UTF-8 byte."""
        return math.exp(self.nats / self.bytes)

    @property
    def normalised_perplexity_characters(self) -> float:
        """Per character, the published form."""
        return math.exp(self.nats / self.characters)

    def to_dict(self) -> dict[str, Any]:
        """Totals and measures, for JSON."""
        measures = (
            "loss",
            "perplexity",
            "bits_per_byte",
            "normalised_perplexity",
            "normalised_perplexity_characters",
        )
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in measures},
            "top1_accuracy": self.top1 / self.targets,
            "top10_accuracy": self.top10 / self.targets,
        }


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: Iterable[Batch],
    characters: Tensor,
    *,
    carry: bool,
    limit: int | None = None,
) -> Metrics:
    """Score every target with weight 1 in `batches`, stopping after `limit` targets.

    `characters` int64 [V] on the model's device, see `character_table`. With `carry`, row r of each batch continues
    row r of the one before. ValueError when nothing was scored.
    """
    device = model.embedding.weight.device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(5, dtype=torch.int64, device=device)  # targets, bytes, characters, top 1, top 10
    state, seen = None, 0
    for batch in batches:
        scored = int(batch.weights.sum().item())
        batch = batch.to(device)
        nll, rank, state = model.scores(batch, state)
        if not carry:
            state = None
        kept = batch.weights > 0
        nats += nll[kept].double().sum()
        amounts = [
            kept,
            batch.target_bytes * kept,
            characters[batch.targets] * kept,
            kept & (rank < 1),
            kept & (rank < 10),
        ]
        counts += torch.stack([amount.sum() for amount in amounts])
        seen += scored
        if limit is not None and seen >= limit:
            break
    if not seen:
        raise ValueError("evaluate: no target to score; the split is empty")
    return Metrics(nats.item(), *(int(count) for count in counts.tolist()))


def character_table(dataset: Dataset, device: torch.device) -> Tensor:
    """Characters per token id, int64 [V], as the published metric counts them."""
    lengths = torch.from_numpy(dataset.tokenizer.character_lengths()).to(torch.int64)
    lengths[dataset.eod] = DOCUMENT_SYMBOL_CHARACTERS
    return lengths.to(device)


def evaluate_split(
    model: LanguageModel,
    dataset: Dataset,
    split: str,
    *,
    window: int,
    last_n: int | None = None,
    rows: int = 16,
    resets: bool = False,
    carry: bool | None = None,
    limit: int | None = None,
) -> Metrics:
    """Metrics of a whole split (or its first `limit` targets).

    Attention models see windows of `window` tokens that advance by `last_n` (default: the window), and each target is
    scored once, the first window's all. Recurrent models (`carry`, the default for them) read `rows` parallel streams
    with their state carried on. `resets`: nothing is seen across a document's start.
    ValueError for a carried state with overlapping windows.
    """
    carry = model.config.recurrent if carry is None else carry
    last_n = window if last_n is None else last_n
    if carry and last_n != window:
        raise ValueError(f"evaluate: want last_n = window when the state is carried, got {last_n} and {window}")
    rows = min(rows, dataset.split(split).tokens)
    source = WindowSource(
        dataset.split(split),
        window=window,
        last_n=last_n,
        batch_rows=rows,
        documents="reset" if resets else "join",
        streams=rows if carry else 1,
        byte_lengths=dataset.tokenizer.byte_lengths(),
        carry=carry,
    )
    return evaluate(model, source, character_table(dataset, model.embedding.weight.device), carry=carry, limit=limit)
