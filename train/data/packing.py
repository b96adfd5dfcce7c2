"""Which pieces of documents share a row: best-fit decreasing, and cuts where that leaves gaps.

N documents, T pairs per row, R rows, P pieces. A piece is a run of pairs of one document, at most T long.
"""

from dataclasses import dataclass

import numpy as np

from hotplate.train.data.permutation import scramble

TOLERANCE = 256  # a row may stay unfilled by T // 256 pairs (0.4%) before its pieces are cut and joined


@dataclass(frozen=True)
class Plan:
    """The rows of an epoch. Row r holds pieces [first[r], first[r + 1]), in order, from its left end.

    `begins` int64 [P] is the number of a piece's first pair in the split, `sizes` int32 [P] its pairs,
    `first` int64 [R + 1].
    """

    begins: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    window: int

    @property
    def rows(self) -> int:
        return len(self.first) - 1

    @property
    def fill(self) -> float:
        """Pairs over row places: the share of the computation that trains on something."""
        return float(self.sizes.sum(dtype=np.int64)) / (self.rows * self.window)

    @property
    def segments(self) -> int:
        """The most segments that a row has, its padding included."""
        used = np.add.reduceat(self.sizes, self.first[:-1], dtype=np.int64)
        return int((np.diff(self.first) + (used < self.window)).max())


def plan_rows(starts: np.ndarray, window: int, seed: int) -> Plan:
    """Pack the pairs of documents [starts[i], starts[i + 1]) (int64 [N + 1]) into rows of `window`.

    Every pair is in exactly one piece. Whole windows of long documents are rows by themselves; the remainders
    are packed best-fit decreasing, equal sizes in the seed's order; the pieces of rows that stay under-filled
    are then put end to end and cut at row ends. At most T // 256 places of a row are empty, except in the
    last one. O(N log N + T log T) time, about 60 bytes per piece.
    """
    lengths = np.diff(starts)
    full = lengths // window
    whole = _whole_windows(starts[:-1], full, window)
    remainders = lengths - full * window
    short = np.flatnonzero(remainders)
    begins, sizes = (starts[:-1] + full * window)[short], remainders[short]
    order = np.lexsort((scramble(short, seed), -sizes))
    begins, sizes = begins[order], sizes[order]
    row = best_fit_decreasing(sizes, window)
    by_row = np.argsort(row, kind="stable")
    begins, sizes, row = begins[by_row], sizes[by_row], row[by_row]

    empty = window - np.bincount(row, weights=sizes).astype(np.int64)
    keep = (empty <= window // TOLERANCE)[row] if len(row) else np.zeros(0, bool)
    cut_begins, cut_sizes, cut_row = _end_to_end(begins[~keep], sizes[~keep], window)
    kept = np.unique(row[keep], return_inverse=True)[1] if keep.any() else np.zeros(0, np.int64)
    rows = np.concatenate([np.arange(len(whole)), len(whole) + kept])
    cut_row = cut_row + (int(rows[-1]) + 1 if len(rows) else 0)
    counts = np.bincount(np.concatenate([rows, cut_row]))
    return Plan(
        begins=np.concatenate([whole, begins[keep], cut_begins]),
        sizes=np.concatenate([np.full(len(whole), window), sizes[keep], cut_sizes]).astype(np.int32),
        first=np.concatenate([[0], np.cumsum(counts)]),
        window=window,
    )


def best_fit_decreasing(sizes: np.ndarray, window: int) -> np.ndarray:
    """int64 row of each piece; `sizes` int64, descending, each at most `window`.

    Pieces of one size are placed together: rows are kept as groups by the room left, and a group of m rows
    with room c takes m * (c // size) pieces, which is where best fit would put them one by one.
    """
    row_of = np.empty(len(sizes), np.int64)
    by_room: dict[int, list[np.ndarray]] = {}  # room left -> rows
    rooms = _SmallestRoom(window)
    opened = 0
    distinct, firsts, counts = np.unique(-sizes, return_index=True, return_counts=True)
    for size, at, left in zip((-distinct).tolist(), firsts.tolist(), counts.tolist(), strict=True):
        while left:
            room = rooms.at_least(size)
            if room is None:
                rows = np.arange(opened, opened + -(-left // (window // size)))
                opened, room = opened + len(rows), window
            else:
                rows = np.concatenate(by_room.pop(room))
                rooms.remove(room)
            each = room // size
            used = -(-left // each)  # rows that this group needs
            rows, spare = rows[:used], rows[used:]
            placed = min(left, len(rows) * each)
            row_of[at : at + placed] = np.repeat(rows, each)[:placed]
            at, left = at + placed, left - placed
            partly = placed - (len(rows) - 1) * each  # pieces in the last row, at most `each`
            groups = ((room, spare), (room - each * size, rows[:-1]), (room - partly * size, rows[-1:]))
            for rest, group in groups:
                if rest and len(group):
                    by_room.setdefault(rest, []).append(group)
                    rooms.add(rest)
    return row_of


class _SmallestRoom:
    """The rooms in use as a bit set, so that the smallest that is large enough is found at once."""

    def __init__(self, window: int):
        self._bits = 0
        self._window = window

    def add(self, room: int) -> None:
        self._bits |= 1 << room

    def remove(self, room: int) -> None:
        self._bits &= ~(1 << room)

    def at_least(self, size: int) -> int | None:
        above = self._bits >> size
        return size + (above & -above).bit_length() - 1 if above else None


def _whole_windows(begins: np.ndarray, count: np.ndarray, window: int) -> np.ndarray:
    number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(begins, count) + number * window


def _end_to_end(begins: np.ndarray, sizes: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begins, sizes and rows of the parts of pieces laid end to end and cut at every multiple of `window`."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.union1d(ends, np.arange(window, total, window))  # a piece may end exactly at a row's end
    lefts = np.concatenate([[0], edges[:-1]]) if total else edges
    owner = np.searchsorted(ends, lefts, side="right")
    parts = begins[owner] + lefts - (ends - sizes)[owner]
    return parts, edges - lefts, lefts // window
