"""Training batches of packed documents: shuffled rows, no attention or state across documents.

G global rows per optimiser step, T pairs per row. Global row g of step s is row s * G + g of an endless
sequence of epochs, so a batch depends on (seed, step, rows) alone: not on ranks, micro-batches or resumption.
"""

from typing import Protocol

import numpy as np

from hotplate.model.batch import Batch
from hotplate.train.data.packing import plan_rows
from hotplate.train.data.permutation import permute
from hotplate.train.data.rows import boundaries, check_enough, check_rows, make_batch
from hotplate.train.errors import InputError


class Documents(Protocol):
    """What rows are cut from: a `Split`, or documents in memory."""

    name: str
    documents: int
    tokens: int
    starts: np.ndarray
    vocab: int
    eod: int

    def gather(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class PackedSource:
    """Packed batches of `rows` x `window` pairs per step.

    The pieces of an epoch and the rows they share are fixed (`hotplate.train.data.packing`); every epoch
    visits the rows in another order. Positions restart at each piece, `resets` marks its first pair, and a
    row's padding is a segment of its own with weight 0. `fill` is the share of places with a pair; `segments`
    the boundaries that a row may need.
    """

    def __init__(self, split: Documents, *, rows: int, window: int, seed: int, byte_lengths: np.ndarray, vocab: int):
        if vocab != split.vocab:
            raise InputError(f"the model has {vocab:,} ids, split {split.name!r} has {split.vocab:,}")
        check_enough(split, rows, window)
        self.split, self.rows, self.window, self.seed = split, rows, window, seed
        self.tokens_per_step = rows * window
        self.plan = plan_rows(split.starts, window, seed)
        self.fill, self.segments = self.plan.fill, self.plan.segments
        self._byte_lengths = byte_lengths

    def epoch(self, step: int) -> float:
        """Passes over the split that are complete before `step`."""
        return step * self.rows / self.plan.rows

    def batch(self, step: int, rows: range) -> Batch:
        """Global rows `rows` of `step`; cu_seqlens has `len(rows) * segments + 1` entries.

        Raises InputError naming shard, offset and id if a token is outside the vocabulary.
        """
        check_rows(rows, self.rows)
        return self.of_sequence(step * self.rows + np.arange(rows.start, rows.stop))

    def of_sequence(self, sequence: np.ndarray) -> Batch:
        """The rows at these places (int64 [B]) of the endless sequence of epochs."""
        return self.of_plan_rows(self._plan_rows(sequence))

    def of_plan_rows(self, plan_row: np.ndarray) -> Batch:
        """These rows (int64 [B]) of the plan."""
        rows = range(len(plan_row))
        count = self.plan.first[plan_row + 1] - self.plan.first[plan_row]
        piece = np.repeat(self.plan.first[plan_row], count) + _ramp(count)
        sizes = self.plan.sizes[piece].astype(np.int64)
        row = np.repeat(np.arange(len(rows)), count)
        before = np.cumsum(sizes) - sizes  # pairs of the batch before this piece
        row_start = before[np.cumsum(count) - count]
        places = np.repeat(row * self.window + before - row_start[row], sizes) + (within := _ramp(sizes))

        shape = (len(rows), self.window)
        inputs, targets = np.full(shape, self.split.eod), np.full(shape, self.split.eod)
        inputs.reshape(-1)[places], targets.reshape(-1)[places] = self.split.gather(
            np.repeat(self.plan.begins[piece], sizes) + within
        )
        used = np.bincount(row, weights=sizes, minlength=len(rows)).astype(np.int64)
        columns = np.arange(self.window)
        scored = columns < used[:, None]
        positions = np.where(scored, 0, columns - used[:, None])  # the padding counts from its own start
        positions.reshape(-1)[places] = within
        starts = positions == 0
        return make_batch(
            inputs,
            targets,
            self._byte_lengths,
            positions=positions,
            scored=scored,
            resets=starts,
            bounds=boundaries(starts, len(rows) * self.segments),
        )

    def _plan_rows(self, sequence: np.ndarray) -> np.ndarray:
        """int64 row of the plan for each place: the epoch's permutation of its place in the epoch."""
        epochs, places = np.divmod(sequence, self.plan.rows)
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            chosen[inside] = permute(places[inside], self.plan.rows, self.seed, int(epoch))
        return chosen


def _ramp(counts: np.ndarray) -> np.ndarray:
    """[0..counts[0]), [0..counts[1]), ... one after another, int64."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
