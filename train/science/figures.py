"""The report's figures: one colour per family everywhere, thin axes, no decoration.

Figures are drawn once, in the light palette. As SVG the palette's colours become CSS variables, so that the page's
light and dark modes recolour them; as PNG they stay as drawn.
"""

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from hotplate.train.science.comparison import amount
from hotplate.train.science.crossing import Crossing
from hotplate.train.science.laws import Fit
from hotplate.train.science.observations import UNITS, Axis, Observation

# Each colour differs from all others, so that it can be found in an SVG again: name -> (light, dark).
PALETTE = {
    "ink": ("#1c2430", "#e8ebf0"),
    "muted": ("#66707f", "#98a2b1"),
    "grid": ("#e3e7ec", "#2a323d"),
    "gpt": ("#2563b8", "#6ea8f2"),
    "qlstm": ("#c8641b", "#f0a264"),
    "lstm": ("#7a4fb0", "#b995ea"),
    "decoder": ("#1b8a6b", "#5ecfae"),
    "fifth": ("#a8324a", "#ee8ba0"),
    "sixth": ("#6f7d12", "#bccb57"),
}
FAMILIES = tuple(PALETTE)[3:]
PHASES = {"train": 1.0, "evaluate": 0.55, "measure": 0.4, "save": 0.3, "data": 0.2, "sample": 0.14, "start-up": 0.1}
NICE = (  # ticks of a decade, fine to coarse: the finest that gives at most eight
    (*(1 + tenth / 10 for tenth in range(10)), 2, 2.2, 2.4, 2.6, 2.8, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 9),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 2, 5),
    (1,),
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALETTE["muted"][0],
    "axes.linewidth": 0.7,
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.titlesize": 9.5,
    "axes.titlecolor": PALETTE["ink"][0],
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.7,
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": PALETTE["ink"][0],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Drawing:
    """A figure with what the page says about it."""

    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """Inline SVG whose colours are CSS variables."""
        held = io.StringIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            self.figure.savefig(held, format="svg", metadata={"Date": None}, transparent=True)
        text = held.getvalue()
        text = text[text.index("<svg") :]
        for name, (light, _) in PALETTE.items():
            text = text.replace(light, f"var(--{name})")
        text = re.sub(r'id="(figure|axes|text|patch|line2d|matplotlib|legend|xtick|ytick)[^"]*"', "", text)
        text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
        return text

    def png(self, path: Path) -> None:
        """The same on white, for slides and papers."""
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(path, format="png", dpi=200, facecolor="white")


def colours(families: Iterable[str]) -> dict[str, str]:
    """A palette name per family: its own where it has one, the free ones in order for the rest."""
    names = list(dict.fromkeys(families))
    free = itertools.cycle([name for name in FAMILIES if name not in names] or FAMILIES)
    return {name: name if name in FAMILIES else next(free) for name in names}


@matplotlib.rc_context(STYLE)
def learning_curves(
    runs: Sequence[tuple[Observation, Sequence[Mapping[str, Any]]]], axes_used: Sequence[Axis], paint: Mapping[str, str]
) -> Drawing:
    """Training loss of every run over each cost: one line a run, light where it is noisy."""
    figure, panels = _panels(len(axes_used), height=2.9)
    for panel, axis in zip(panels, axes_used, strict=True):
        for observation, records in runs:
            kept = [record for record in records if record.get("loss") is not None]
            total, end = getattr(observation, axis), observation.tokens or 1.0
            x = [record["tokens"] / end * total for record in kept]
            colour = PALETTE[paint[observation.family]][0]
            panel.plot(x, [record["loss"] for record in kept], color=colour, linewidth=0.9, alpha=0.75)
        panel.set_xscale("log")
        _cost_axis(panel, axis)
        panel.set_title(f"over {UNITS[axis]}")
    panels[0].set_ylabel("training loss, nats per token")
    _legend(figure, paint)
    caption = (
        "One line per run, averaged between two reports. Each class has its own schedule and ends with its budget."
    )
    return Drawing("curves", "Learning curves", caption, figure)


@matplotlib.rc_context(STYLE)
def laws(
    fits: Mapping[Axis, Mapping[str, Fit]], paint: Mapping[str, str], metric: str, level: float, name: str, title: str
) -> Drawing:
    """Runs, laws and their bands over each cost, a little beyond what was measured."""
    figure, panels = _panels(len(fits), height=3.1)
    for panel, (axis, families) in zip(panels, fits.items(), strict=True):
        for family, found in families.items():
            _law(panel, found, PALETTE[paint[family]][0], float(found.x.max()) * 4)
        _log_log(panel, axis)
        panel.set_title(f"over {UNITS[axis]}")
    panels[0].set_ylabel(metric.replace("_", " "))
    _legend(figure, paint)
    caption = f"A point is a run. Bands hold the law with {level:.0%} confidence; they say nothing about one more run."
    return Drawing(name, title, caption, figure)


@matplotlib.rc_context(STYLE)
def crossing_figure(
    fits: Mapping[str, Fit], crossings: Sequence[Crossing], horizon: float, paint: Mapping[str, str], metric: str
) -> Drawing:
    """Laws over hours up to the horizon, with every crossing and its interval below."""
    rows = len(crossings)
    figure = Figure(figsize=(9.6, 3.7 + 0.32 * rows), layout="constrained")
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.7, 0.32 * rows + 0.05))
    for family, found in fits.items():
        _law(panel, found, PALETTE[paint[family]][0], horizon)
    muted = PALETTE["muted"][0]
    measured = max(float(found.x.max()) for found in fits.values())
    panel.axvspan(measured, horizon, color=PALETTE["grid"][0], alpha=0.35, linewidth=0)
    panel.text(
        measured * 1.08,
        0.97,
        "extrapolated",
        transform=panel.get_xaxis_transform(),
        fontsize=8.5,
        va="top",
        color=muted,
    )
    _log_log(panel, "hours")
    panel.set_ylabel(metric.replace("_", " "))
    for row, place in enumerate(crossings):
        colour = PALETTE[paint[place.overtaking]][0]
        low, high = (min(edge, horizon) for edge in (place.low, place.high))
        below.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        if place.at is not None:
            below.plot([place.at], [row], "o", color=colour, markersize=5)
        if np.isinf(place.high):
            below.plot([horizon], [row], ">", color=colour, markersize=5, clip_on=False)
    below.set_yticks(range(rows), [f"{place.overtaking} meets {place.leading}" for place in crossings])
    below.set_ylim(rows - 0.5, -0.5)
    below.grid(axis="y", visible=False)
    below.spines["left"].set_visible(False)
    below.set_xlim(panel.get_xlim()[0], horizon)
    _cost_axis(below, "hours")
    _legend(figure, paint)
    caption = (
        "Below the laws: where two of them meet (dot) and the interval of that place (bar); an arrow means that it "
        "goes on beyond the horizon."
    )
    return Drawing("crossing", "Extrapolation and crossings", caption, figure)


@matplotlib.rc_context(STYLE)
def throughput_and_goodput(
    speeds: Mapping[str, tuple[str, float, float]], paid: Mapping[str, tuple[str, Mapping[str, float]]]
) -> Drawing:
    """Per model: (palette name, protocol tokens/s, tokens/s while training); (palette name, paid seconds by phase)."""
    figure = Figure(figsize=(9.6, 0.9 + 0.42 * len(speeds)), layout=ConstrainedLayoutEngine(wspace=0.05))
    left, right = figure.subplots(1, 2, sharey=True)
    for row, (colour, protocol, training) in enumerate(speeds.values()):
        left.barh(row, protocol, height=0.5, color=PALETTE[colour][0], alpha=0.85, linewidth=0)
        left.plot([training], [row], "|", color=PALETTE["ink"][0], markersize=13, markeredgewidth=1.6)
    left.set_yticks(range(len(speeds)), list(speeds))
    left.set_ylim(len(speeds) - 0.4, -0.6)
    left.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: amount(value, "tokens") if value else "0"))
    left.set_title("tokens/s: measured before (bar), while training (mark)")
    for row, (colour, phases) in enumerate(paid.values()):
        edge, total = 0.0, sum(phases.values())
        for phase, strength in PHASES.items():
            share = 100 * phases.get(phase, 0.0) / total
            right.barh(row, share, left=edge, height=0.5, color=PALETTE[colour][0], alpha=strength, linewidth=0)
            if share > 7:
                right.text(edge + share / 2, row + 0.4, f"{phase} {share:.0f}%", ha="center", va="center", fontsize=7.5)
            edge += share
    right.set_title("where the paid time went, %")
    for panel in (left, right):
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
    caption = (
        "Goodput is the share of paid accelerator time spent in training steps; the rest is measuring, evaluating, "
        "saving and starting. All runs of a model together."
    )
    return Drawing("throughput", "Throughput and goodput", caption, figure)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.6, height + 0.35), layout=ConstrainedLayoutEngine(wspace=0.05))
    return figure, list(np.atleast_1d(figure.subplots(1, count, sharey=True)))


def _law(panel: Axes, found: Fit, colour: str, until: float) -> None:
    x = np.geomspace(found.x.min(), until, 120)
    low, high = found.interval(x)
    panel.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    inside = x <= found.x.max()
    panel.plot(x[inside], found.law(x[inside]), color=colour, linewidth=1.6)
    panel.plot(x[~inside], found.law(x[~inside]), color=colour, linewidth=1.2, linestyle=(0, (4, 2.5)))
    panel.plot(found.x, found.y, "o", color=colour, markersize=4, alpha=0.8, markeredgewidth=0)


def _log_log(panel: Axes, axis: Axis) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    _cost_axis(panel, axis)
    low, high = panel.get_ylim()
    for decade in NICE:
        ticks = [nice * 10.0**power for power in range(-6, 7) for nice in decade if low <= nice * 10.0**power <= high]
        if len(ticks) <= 8:
            break
    panel.set_yticks(ticks)
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def _cost_axis(panel: Axes, axis: Axis) -> None:
    """Few round ticks with units: a second, a minute and an hour are rounder than powers of ten of hours."""
    low, high = panel.get_xlim()
    if axis == "hours":
        seconds = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1200)
        hours = [base * 10.0**power for power in range(7) for base in (1, 2, 5)]
        ticks = [second / 3600 for second in seconds] + hours
    else:
        ticks = [base * 10.0**power for power in range(26) for base in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    step = max(1, -(-len(inside) // 6))
    panel.set_xticks(inside[::step])
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: amount(value, axis)))
    panel.xaxis.set_minor_locator(ticker.NullLocator())


def _legend(figure: Figure, paint: Mapping[str, str]) -> None:
    handles = [Line2D([], [], color=PALETTE[name][0], linewidth=2, label=family) for family, name in paint.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.2)
