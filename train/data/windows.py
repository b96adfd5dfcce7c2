"""Evaluation batches: sliding windows over a whole split, every target scored exactly once.

T pairs per window, n (`last_n`) the stride: after a stream's first window only the last n targets of each are
scored, so that every scored target but the first T sees at least T - n earlier tokens.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from hotplate.model.batch import Batch
from hotplate.train.data.dataset import Split
from hotplate.train.data.rows import boundaries, make_batch, positions_from

Documents = Literal["join", "reset"]


class WindowSource:
    """Iterates over `Batch`es that cover the split once; `len()` is their number, `tokens` the targets
    scored.

    Without `carry`, windows of one stream fill batches of `batch_rows`, each from zero state. With it (always
    if `streams` > 1) row r of every batch continues stream r, `slots` says so, and `batch_rows` must equal
    `streams`. "join" lets a window run across documents; "reset" separates them by resets, positions and
    cu_seqlens.
    """

    def __init__(
        self,
        split: Split,
        window: int,
        last_n: int | None = None,
        batch_rows: int = 1,
        documents: Documents = "join",
        streams: int = 1,
        *,
        byte_lengths: np.ndarray,
        carry: bool = False,
    ):
        last_n = window if last_n is None else last_n
        carry = carry or streams > 1
        if not 1 <= last_n <= window:
            raise ValueError(f"WindowSource: want 1 <= last_n <= window = {window}, got {last_n}")
        if documents not in ("join", "reset"):
            raise ValueError(f'WindowSource: want documents "join" or "reset", got {documents!r}')
        if carry and last_n != window:
            raise ValueError(f"WindowSource: carried state needs last_n == window = {window}, got {last_n}")
        if carry and batch_rows != streams:
            raise ValueError(f"WindowSource: carried state needs batch_rows == streams = {streams}, got {batch_rows}")
        if not 1 <= streams <= split.tokens:
            raise ValueError(f"WindowSource: want 1 to {split.tokens} streams, got {streams}")
        self.split, self.window, self.last_n, self.batch_rows = split, window, last_n, batch_rows
        self.documents, self.carry, self.tokens = documents, carry, split.tokens
        self._edges = np.arange(streams + 1) * split.tokens // streams
        longest = int(np.diff(self._edges).max())
        self.windows = 1 + max(0, -(-(longest - window) // last_n))  # per stream
        self.segments = self._most_segments() if documents == "reset" else 1
        self._byte_lengths = byte_lengths

    def __len__(self) -> int:
        return self.windows if self.carry else -(-self.windows // self.batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(number) for number in range(len(self)))

    def batch(self, number: int) -> Batch:
        """Batch `number`, always of `batch_rows` rows; rows and places past the end have weight 0 and token
        D.
        """
        pairs, inside, step = self._places(number)
        columns = np.arange(self.window)
        inputs, targets = np.full(pairs.shape, self.split.eod), np.full(pairs.shape, self.split.eod)
        inputs[inside], targets[inside] = self.split.gather(pairs[inside])
        scored = inside & ((columns >= self.window - self.last_n) | (step == 0)[:, None])
        return make_batch(
            inputs,
            targets,
            self._byte_lengths,
            scored=scored,
            **self._segments_of(pairs, inside),
            slots=np.arange(self.batch_rows) if self.carry else None,
        )

    def pairs(self, number: int) -> np.ndarray:
        """int64 [B, T]: the split's pair at each place of batch `number`; -1 where there is none."""
        pairs, inside, _ = self._places(number)
        return np.where(inside, pairs, -1)

    def _places(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of batch `number`: the pair at each place (int64 [B, T]), whether there is one (bool [B, T]), and the window
        of its stream that each row is (int64 [B]).
        """
        if self.carry:
            stream, step = np.arange(self.batch_rows), np.full(self.batch_rows, number)
        else:
            stream, step = np.zeros(self.batch_rows, np.int64), number * self.batch_rows + np.arange(self.batch_rows)
        begin, end = self._edges[stream] + step * self.last_n, self._edges[stream + 1]
        pairs = begin[:, None] + np.arange(self.window)
        return pairs, (pairs < end[:, None]) & (step < self.windows)[:, None], step

    def _segments_of(self, pairs: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
        if self.documents == "join":
            return {"positions": np.broadcast_to(np.arange(self.window), pairs.shape).copy()}
        starts = np.zeros(pairs.shape, bool)
        known = pairs[inside]
        starts[inside] = self.split.starts[np.searchsorted(self.split.starts, known)] == known
        starts[:, 1:] |= inside[:, :-1] & ~inside[:, 1:]  # the padding is a segment of its own
        segments = starts.copy()
        segments[:, 0] = True
        return {
            "positions": positions_from(segments),
            "resets": starts if self.carry else segments,
            "bounds": boundaries(segments, self.batch_rows * self.segments),
        }

    def _most_segments(self) -> int:
        """Document starts in any T pairs, plus the one that a window begins in and its padding."""
        starts = self.split.starts
        within = np.searchsorted(starts, starts + self.window) - np.arange(len(starts))
        return min(self.window, 2 + int(within.max()))
