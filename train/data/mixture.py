"""Batches whose rows come from several sources in given shares.

G global rows per step. Rows are full (docs/data.md), so shares of rows are shares of tokens.
"""

from collections.abc import Mapping

import numpy as np
import torch

from hotplate.model.batch import Batch
from hotplate.train.data.rows import boundaries, check_rows
from hotplate.train.data.sources import PackedSource

PERIOD = 1000  # rows after which the pattern of sources repeats: shares are exact to one in this many


class MixtureSource:
    """Row n of the endless sequence is the next unread row of the source that a fixed pattern gives it to.

    Every source goes through its own epochs, so that a batch still depends on (seed, step, rows) alone. `shares` need
    not sum to 1. ValueError for a share below one row in PERIOD, or sources of different windows.
    """

    def __init__(self, sources: Mapping[str, PackedSource], shares: Mapping[str, float], rows: int):
        self.sources, self.rows = dict(sources), rows
        windows = {source.window for source in self.sources.values()}
        if len(windows) != 1 or set(shares) != set(sources) or min(shares.values()) <= 0:
            raise ValueError(f"MixtureSource: want one window and a share > 0 for each source, got {dict(shares)}")
        self.window = windows.pop()
        self.tokens_per_step = rows * self.window
        total = sum(shares.values())
        self.shares = {name: shares[name] / total for name in self.sources}
        self._pattern = _pattern(np.array(list(self.shares.values())))
        # rows that each source has among the first r of a period: [PERIOD + 1, sources]
        each = self._pattern[:, None] == np.arange(len(self.sources))
        self._before = np.concatenate([np.zeros((1, len(self.sources)), np.int64), np.cumsum(each, axis=0)])
        if not self._before[-1].all():
            raise ValueError(f"MixtureSource: want at least one row in {PERIOD} for each source, got {self.shares}")
        self.segments = max(source.segments for source in self.sources.values())
        self.fill = sum(self.shares[name] * source.fill for name, source in self.sources.items())

    def epochs(self, step: int) -> dict[str, float]:
        """Passes over each source that are complete before `step`."""
        periods, rest = divmod(step * self.rows, PERIOD)
        read = periods * self._before[-1] + self._before[rest]
        return {
            name: int(count) / source.plan.rows
            for (name, source), count in zip(self.sources.items(), read, strict=True)
        }

    def batch(self, step: int, rows: range) -> Batch:
        """Global rows `rows` of `step`; cu_seqlens has `len(rows) * segments + 1` entries."""
        check_rows(rows, self.rows)
        places = step * self.rows + np.arange(rows.start, rows.stop)
        periods, rest = np.divmod(places, PERIOD)
        owner = self._pattern[rest]
        sequence = (periods[:, None] * self._before[-1] + self._before[rest])[np.arange(len(places)), owner]
        parts, order = [], []
        for number, source in enumerate(self.sources.values()):
            mine = np.flatnonzero(owner == number)
            if len(mine):
                parts.append(source.of_sequence(sequence[mine]))
                order.append(mine)
        back = torch.from_numpy(np.argsort(np.concatenate(order), kind="stable"))

        def joined(name: str) -> torch.Tensor:
            return torch.cat([getattr(part, name) for part in parts])[back]

        positions = joined("positions")
        starts = (positions == 0).numpy()
        return Batch(
            tokens=joined("tokens"),
            targets=joined("targets"),
            weights=joined("weights"),
            positions=positions,
            target_bytes=joined("target_bytes"),
            resets=torch.from_numpy(starts),
            cu_seqlens=torch.from_numpy(boundaries(starts, len(rows) * self.segments)),
        )


def _pattern(shares: np.ndarray) -> np.ndarray:
    """int64 [PERIOD]: each row goes to the source that is furthest behind its share, ties to the first."""
    given = np.zeros(len(shares))
    pattern = np.empty(PERIOD, np.int64)
    for place in range(PERIOD):
        pattern[place] = int(np.argmax(shares * (place + 1) - given))
        given[pattern[place]] += 1
    return pattern
