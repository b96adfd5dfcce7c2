"""Mean loss by position: in the document, and in the window; with recurrent state carried on, and without.

A target's position in its document is the number of the document's tokens before it; its position in the window is its
column. Positions are pooled in bins of a quarter octave. Both modes score the same targets, so they compare in pairs.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotplate.model.lm import LanguageModel
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.windows import WindowSource

CARRIED, WINDOW = "carried", "window"  # state from the windows before; nothing but the window


@dataclass(frozen=True)
class Curves:
    """Sums over the targets of each bin: bin i holds positions [edges[i], edges[i + 1])."""

    edges: np.ndarray  # int64 [N + 1], increasing from 0
    targets: np.ndarray  # int64 [N]
    nats: dict[str, np.ndarray]  # mode -> float64 [N]

    def mean(self, mode: str) -> np.ndarray:
        """float64 [N] nats per target; nan in a bin without targets."""
        return np.divide(self.nats[mode], self.targets, out=np.full(len(self.targets), np.nan), where=self.targets > 0)

    def to_dict(self) -> dict[str, Any]:
        """Bins with targets, for JSON."""
        used = self.targets > 0
        return {
            "from": self.edges[:-1][used].tolist(),
            "to": self.edges[1:][used].tolist(),
            "targets": self.targets[used].tolist(),
            **{mode: self.mean(mode)[used].tolist() for mode in self.nats},
        }


@dataclass(frozen=True)
class Beyond:
    """Targets with at least a window of their document before them: what carried state is worth there."""

    targets: int
    documents: int
    carried: float  # nats per target
    window: float
    standard_error: float | None  # of the difference, over documents; None for one document

    @property
    def difference(self) -> float:
        """Carried less window, nats per target: below 0 when state helps."""
        return self.carried - self.window


@dataclass(frozen=True)
class PositionLosses:
    """A split's losses by position. `beyond` is None for attention models and where no document is that long."""

    split: str
    window: int
    resets: bool
    document: Curves
    place: Curves
    beyond: Beyond | None

    def to_dict(self) -> dict[str, Any]:
        beyond = None if self.beyond is None else {**vars(self.beyond), "difference": self.beyond.difference}
        return {
            "split": self.split,
            "window": self.window,
            "resets": self.resets,
            "by_document_position": self.document.to_dict(),
            "by_window_position": self.place.to_dict(),
            "beyond_window": beyond,
        }


def bin_edges(longest: int) -> np.ndarray:
    """int64: 0, 1, 2, ... and from 6 on rounded powers of 2^(1/4), the last above `longest`."""
    steps = range(4 * max(1, longest).bit_length() + 1)
    return np.array(sorted({0, *(round(2 ** (step / 4)) for step in steps)}), np.int64)


def position_losses(
    model: LanguageModel,
    dataset: Dataset,
    split: str,
    *,
    window: int,
    rows: int = 16,
    resets: bool = False,
    limit: int | None = None,
) -> PositionLosses:
    """Losses of a split, or of its first batches until `limit` targets are scored.

    The split is read as `rows` streams of windows without overlap. Recurrent models score each window twice: from the
    state that the stream's earlier windows left, and from zero state. `resets`: nothing is seen across a document's
    start, in either mode.
    """
    chosen = dataset.split(split)
    rows = min(rows, chosen.tokens)
    source = WindowSource(
        chosen,
        window=window,
        batch_rows=rows,
        documents="reset" if resets else "join",
        streams=rows,
        byte_lengths=dataset.tokenizer.byte_lengths(),
        carry=True,
    )
    device = model.embedding.weight.device
    modes = (CARRIED, WINDOW) if model.config.recurrent else (WINDOW,)
    document, place = (_empty(bin_edges(longest), modes) for longest in (int(chosen.lengths.max()), window))
    gains = np.zeros((2, chosen.documents))  # per document, beyond the window: sum of differences, targets
    beyond = dict.fromkeys(modes, 0.0)
    state, seen = None, 0
    for number, batch in enumerate(source):
        pairs = source.pairs(number)
        kept = pairs >= 0
        owner = chosen.documents_of(pairs[kept])
        position = pairs[kept] - chosen.starts[owner]
        batch = batch.to(device)
        nll = {}
        for mode in modes:
            scores, _, left = model.scores(batch, state if mode == CARRIED else None)
            nll[mode] = scores.cpu().double().numpy()[kept]
            state = left if mode == CARRIED else state
        _add(document, position, nll)
        _add(place, np.nonzero(kept)[1], nll)
        far = position >= window
        for mode in modes:
            beyond[mode] += float(nll[mode][far].sum())
        if CARRIED in modes:
            for row, values in zip(gains, (nll[CARRIED] - nll[WINDOW], np.ones(len(position))), strict=True):
                row += np.bincount(owner[far], values[far], chosen.documents)
        seen += len(position)
        if limit is not None and seen >= limit:
            break
    return PositionLosses(split, window, resets, document, place, _beyond(beyond, gains))


def plot(found: list[PositionLosses], path: Path, title: str) -> None:
    """A row of two panels per split: loss by position in the document, and in the window. PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(found), 2, figsize=(9, 0.6 + 2.9 * len(found)), dpi=120, squeeze=False)
    labels = {CARRIED: "state carried on", WINDOW: "the window alone"}
    for losses, (left, right) in zip(found, panels, strict=True):
        for axes, curves, where in ((left, losses.document, "document"), (right, losses.place, "window")):
            used = curves.targets > 0
            middle = np.sqrt((curves.edges[:-1] + 1) * curves.edges[1:])  # of the bin, counted from 1
            for mode in curves.nats:
                axes.plot(middle[used], curves.mean(mode)[used], ".-", label=labels[mode], linewidth=1, markersize=3)
            axes.set_xscale("log")
            axes.set_xlabel(f"position in the {where}, tokens from 1")
            axes.set_ylabel("nats per token")
            axes.set_title(losses.split, loc="left", fontsize="medium")
            axes.grid(alpha=0.3)
        left.axvline(losses.window, color="grey", linestyle=":", linewidth=1, label=f"window {losses.window}")
        left.legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _empty(edges: np.ndarray, modes: tuple[str, ...]) -> Curves:
    bins = len(edges) - 1
    return Curves(edges, np.zeros(bins, np.int64), {mode: np.zeros(bins) for mode in modes})


def _add(curves: Curves, positions: np.ndarray, nll: dict[str, np.ndarray]) -> None:
    bins = len(curves.targets)
    number = np.searchsorted(curves.edges, positions, side="right") - 1
    curves.targets[:] += np.bincount(number, minlength=bins)
    for mode, values in nll.items():
        curves.nats[mode][:] += np.bincount(number, values, bins)


def _beyond(nats: dict[str, float], gains: np.ndarray) -> Beyond | None:
    """The standard error is that of a ratio of sums over documents: Cochran 1977, Sampling Techniques, section 2.11."""
    sums, counts = gains[:, gains[1] > 0]
    targets, documents = int(counts.sum()), len(counts)
    if not targets:
        return None
    rest = sums - sums.sum() / targets * counts
    error = math.sqrt(documents / (documents - 1) * float((rest**2).sum())) / targets if documents > 1 else None
    return Beyond(targets, documents, nats[CARRIED] / targets, nats[WINDOW] / targets, error)
