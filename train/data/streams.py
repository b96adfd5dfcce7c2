"""Training batches of contiguous streams, for models that carry state from step to step.

G global rows per optimiser step, each reading its own queue of documents; T pairs per row. A queue is
d1 tokens, D, d2 tokens, D, ..., read round and round. Source: Languini Kitchen,
dataset_lib/languini_books.py.
"""

import heapq

import numpy as np

from hotplate.model.batch import Batch
from hotplate.train.data.dataset import Split
from hotplate.train.data.rows import boundaries, check_enough, check_rows, make_batch, positions_from
from hotplate.train.errors import InputError


class StreamSource:
    """Batches in which row g at step s continues row g at step s - 1; `slots` are the global row numbers.

    With `resets`, a document's first input (the D before it; at the very start its first token) resets the
    state, and positions and cu_seqlens follow documents; without, a row is one segment with positions 0..T-1.
    """

    def __init__(
        self,
        split: Split,
        *,
        rows: int,
        window: int,
        byte_lengths: np.ndarray,
        vocab: int,
        resets: bool = False,
    ):
        if vocab != split.vocab:
            raise InputError(f"the model has {vocab:,} ids, split {split.name!r} has {split.vocab:,}")
        if split.documents < rows:
            raise InputError(
                f"split {split.name!r} has {split.documents:,} documents, but {rows:,} streams need one "
                "each; use fewer rows "
                "per step, or packed batches"
            )
        check_enough(split, rows, window)
        self.split, self.rows, self.window, self.resets = split, rows, window, resets
        self.tokens_per_step = rows * window
        self.fill = 1.0
        self.queues = distribute(split.lengths - 1, rows)
        # Where each document of a queue begins, and the queue's length: its D counts as its last token.
        self._starts = [np.concatenate([[0], np.cumsum(split.lengths[queue])]) for queue in self.queues]
        self._byte_lengths = byte_lengths
        self.segments = max(map(self._most_segments, range(rows))) if resets else 1

    def epoch(self, step: int) -> float:
        """Passes over the split that are complete before `step`, averaged over the streams."""
        return step * self.tokens_per_step / self.split.tokens

    def batch(self, step: int, rows: range) -> Batch:
        """Global rows `rows` of `step`.

        Raises InputError naming shard, offset and id if a token is outside the vocabulary.
        """
        check_rows(rows, self.rows)
        pairs = np.empty((len(rows), self.window + 1), np.int64)
        starts = np.zeros((len(rows), self.window), bool)
        for place, row in enumerate(rows):
            pairs[place], last = self._read(row, step * self.window)
            starts[place] = last[:-1]  # D, the last token of a document, is the first input of the next
        tokens = self.split.gather_targets(pairs)
        starts[:, 0] |= step == 0
        segments = starts.copy() if self.resets else np.zeros_like(starts)
        segments[:, 0] = True
        return make_batch(
            np.ascontiguousarray(tokens[:, :-1]),
            np.ascontiguousarray(tokens[:, 1:]),
            self._byte_lengths,
            positions=positions_from(segments),
            resets=starts if self.resets else None,
            bounds=boundaries(segments, len(rows) * self.segments) if self.resets else None,
            slots=np.arange(rows.start, rows.stop),
        )

    def _read(self, row: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
        """For T + 1 tokens of a queue from `begin`: the pair whose target each is, and whether it ends a
        document.
        """
        queue, starts = self.queues[row], self._starts[row]
        place = np.arange(begin, begin + self.window + 1) % starts[-1]
        document = np.searchsorted(starts, place, side="right") - 1
        pairs = self.split.starts[queue[document]] + place - starts[document]
        return pairs, place == starts[document + 1] - 1

    def _most_segments(self, row: int) -> int:
        """The most segments in any T places of a queue: document ends in it, plus the one at its start."""
        ends = self._starts[row][1:] - 1
        around = int(ends[-1]) + 1
        turns = 1 + -(-self.window // around)
        ends = np.concatenate([ends + turn * around for turn in range(turns)])
        within = np.searchsorted(ends, ends + self.window) - np.arange(len(ends))
        return 1 + int(within.max())


def distribute(tokens: np.ndarray, queues: int) -> list[np.ndarray]:
    """Document numbers (int64) of each queue: in order, each to the queue with the fewest tokens, ties to the
    lowest.

    `tokens` int64 [N] counts a document's tokens without D, as Languini's file lists do.
    """
    filled = [(0, queue) for queue in range(queues)]  # already a heap
    owner = np.empty(len(tokens), np.int64)
    for document, count in enumerate(tokens.tolist()):
        total, queue = filled[0]
        owner[document] = queue
        heapq.heapreplace(filled, (total + count, queue))
    by_queue = np.argsort(owner, kind="stable")
    return np.split(by_queue, np.cumsum(np.bincount(owner, minlength=queues))[:-1])
