"""What every source of batches shares: segments as positions, resets and boundaries, and tensors out of
arrays.

B rows, T pairs per row, S segments per batch (fixed, so that shapes never change).
"""

import numpy as np
import torch

from hotplate.model.batch import Batch
from hotplate.train.errors import InputError


def positions_from(starts: np.ndarray) -> np.ndarray:
    """int64 [B, T] distance to the last True of `starts` (bool [B, T], column 0 True) in the row."""
    columns = np.arange(starts.shape[1])
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


def boundaries(starts: np.ndarray, segments: int) -> np.ndarray:
    """int32 [S + 1]: places of the True entries of `starts` (bool [B, T], column 0 True), then B * T up to
    the end.
    """
    places = np.flatnonzero(starts)
    assert len(places) <= segments, (len(places), segments)
    bounds = np.full(segments + 1, starts.size, np.int32)
    bounds[: len(places)] = places
    return bounds


def make_batch(
    inputs: np.ndarray,
    targets: np.ndarray,
    byte_lengths: np.ndarray,
    *,
    positions: np.ndarray,
    scored: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    bounds: np.ndarray | None = None,
    slots: np.ndarray | None = None,
) -> Batch:
    """A `Batch` of CPU tensors. `scored` bool [B, T]: which targets have weight 1; None: all of them."""
    target_bytes = byte_lengths[targets]
    if scored is None:
        weights = torch.ones(targets.shape, dtype=torch.float32)
    else:
        weights = torch.from_numpy(scored.astype(np.float32))
        target_bytes = target_bytes * scored
    return Batch(
        tokens=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        weights=weights,
        positions=torch.from_numpy(positions),
        target_bytes=torch.from_numpy(target_bytes.astype(np.int32, copy=False)),
        resets=None if resets is None else torch.from_numpy(resets),
        cu_seqlens=None if bounds is None else torch.from_numpy(bounds),
        slots=None if slots is None else torch.from_numpy(slots),
    )


def check_enough(split, rows: int, window: int) -> None:
    """InputError unless the split fills one batch of `rows` rows of `window` pairs."""
    if split.tokens < rows * window:
        raise InputError(
            f"split {split.name!r} is too small: {split.documents:,} documents with {split.tokens:,} "
            "tokens, but one step needs "
            f"{rows:,} rows x {window:,} = {rows * window:,}; use fewer or shorter rows, or more text"
        )


def check_rows(rows: range, total: int) -> None:
    if not (rows.step == 1 and 0 <= rows.start < rows.stop <= total):
        raise ValueError(f"batch: want consecutive rows within range({total}), got {rows}")
