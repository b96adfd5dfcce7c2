"""Figures beside a result file: share of the floor by room and provider, and throughput of whole steps by model."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hotplate.bench.results import Row


def write(path: Path, rows: Sequence[Row], machine: Mapping[str, object]) -> list[Path]:
    """<stem>-floor.png and <stem>-steps.png, each where there is something to show."""
    title = f"{machine['name']}, {str(machine['date'])[:10]}"
    figures = {"floor": _floors(rows), "steps": _steps(rows)}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.suptitle(title)
            written.append(path.with_name(f"{path.stem}-{name}.png"))
            figure.savefig(written[-1], dpi=120)
    return written


def _floors(rows: Sequence[Row]) -> Figure | None:
    """A room's bar is the geometric mean over its cases."""
    shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.floor_share:
            shares[row.bench][row.provider].append(row.floor_share)
    means = {
        room: {name: 100 * math.exp(statistics.mean(map(math.log, found))) for name, found in by.items()}
        for room, by in shares.items()
    }
    return _bars(means, "% of the speed of light (memory and matrix-product rates measured here)") if means else None


def _steps(rows: Sequence[Row]) -> Figure | None:
    """Tokens per second of a whole training step."""
    speeds: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.bench == "step" and row.tokens_per_s:
            speeds[row.case][row.provider] = row.tokens_per_s
    return _bars(speeds, "tokens per second of a whole training step") if speeds else None


def _bars(groups: Mapping[str, Mapping[str, float]], label: str) -> Figure:
    """Horizontal bars, a group per key, the first provider on top."""
    count = sum(len(bars) for bars in groups.values()) + len(groups)
    figure = Figure(figsize=(9, 1.2 + 0.22 * count), layout="constrained")
    axes: Axes = figure.add_subplot()
    names: list[str] = []
    values: list[float] = []
    colours: list[str] = []
    for group, bars in groups.items():
        for index, (provider, value) in enumerate(bars.items()):
            names.append(f"{group}  {provider}")
            values.append(value)
            colours.append("tab:red" if index == 0 else "tab:grey")
        names.append("")
        values.append(0.0)
        colours.append("white")
    places = range(len(names))
    axes.barh(places, values, color=colours)
    axes.set_yticks(places, names, fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(label)
    return figure
