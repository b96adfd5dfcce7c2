"""Training batches of documents whose text and speech parts are drawn anew in every epoch.

G global rows per step, T pairs per row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hotplate.model.batch import Batch
from hotplate.train.data.mixed import MixedTokenizer
from hotplate.train.data.permutation import permute
from hotplate.train.data.rows import boundaries
from hotplate.train.data.sources import PackedSource
from hotplate.train.speech.interleave import InterleaveConfig, Spoken
from hotplate.train.speech.spoken import Draw, draw

KEPT = 2  # epochs in memory: a step may lie in two


class InterleavedSource(PackedSource):
    """Rows of the documents as `draw` makes them in each epoch; an epoch's ids are in memory.

    An epoch has as many rows as the first one. Draws differ a little in length: of a longer one some rows are left out,
    of a shorter one some come twice, chosen by the seed. So a batch depends on (seed, step, rows) alone.
    """

    def __init__(
        self,
        spoken: Sequence[Spoken],
        tokenizer: MixedTokenizer,
        config: InterleaveConfig,
        *,
        rows: int,
        window: int,
        seed: int,
    ):
        self._spoken, self._tokenizer, self._config = spoken, tokenizer, config
        shape: dict[str, Any] = {"rows": rows, "window": window, "seed": seed, "vocab": tokenizer.vocab}
        self._shape = {**shape, "byte_lengths": tokenizer.byte_lengths()}
        super().__init__(self._drawn(0), **self._shape)
        # Every draw's documents hold at least the shorter form of each word (neighbours may share a unit); a cut adds
        # two pieces to a row, and its padding is one.
        least = (sum(map(min, map(len, each.words), each.last - each.first - 1)) for each in spoken)
        shortest = 1 + max(0, min(least))
        self.segments = max(self.segments, window // int(shortest) + 3)
        self._epochs: dict[int, PackedSource] = {}

    def _drawn(self, epoch: int) -> Draw:
        return Draw(draw(self._spoken, self._tokenizer, self._config, epoch), self._tokenizer)

    def _of_epoch(self, epoch: int) -> PackedSource:
        if epoch not in self._epochs:
            for old in sorted(self._epochs)[: max(0, len(self._epochs) + 1 - KEPT)]:
                del self._epochs[old]
            self._epochs[epoch] = PackedSource(self._drawn(epoch), **self._shape)
        return self._epochs[epoch]

    def of_sequence(self, sequence: np.ndarray) -> Batch:
        """The rows at these places (int64 [B]) of the endless sequence of epochs."""
        epochs, places = np.divmod(sequence, self.plan.rows)
        parts = []
        for epoch in np.unique(epochs):
            source = self._of_epoch(int(epoch))
            inside = places[epochs == epoch]
            row = permute(inside % source.plan.rows, source.plan.rows, self.seed, int(epoch))
            parts.append(source.of_plan_rows(row))
        joined = {
            field.name: torch.cat([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Batch)
            if field.name in ("tokens", "targets", "weights", "positions", "target_bytes", "resets")
        }
        bounds = boundaries(joined["resets"].numpy(), len(sequence) * self.segments)
        return Batch(**joined, cu_seqlens=torch.from_numpy(bounds))
