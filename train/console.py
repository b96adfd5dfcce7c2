"""What the user sees while a run goes: one line a report, a table at the end, a plot, errors in one line."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hotplate.train.budget import Plan

FILE_WIDTH = 110  # of tables in files and pipes


def say(text: str) -> None:
    """A line on the standard output, at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """A line on the standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def quantity(value: float) -> str:
    """55.1k, 198M, 1.2G: three digits and a letter."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """5h37m, 12m03s, 41s."""
    seconds = max(0, round(seconds))
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def hours(value: float, total: float) -> str:
    """Spent and whole budget in the unit that reads best: 0.40/6.00h, 1.2/3.0m."""
    if total >= 1:
        return f"{value:.2f}/{total:.2f}h"
    return f"{value * 60:.1f}/{total * 60:.1f}m"


def progress_line(record: Mapping[str, Any], plan: Plan) -> str:
    """One report of a run, from the record that goes into metrics.jsonl."""
    step, tokens = record["step"], record["tokens"]
    parts = [
        f"step {step}/{plan.steps} {step / plan.steps:.1%}",
        f"loss {'nan' if record['loss'] is None else format(record['loss'], '.3f')}",
    ]
    if record["bits_per_byte"] is not None:
        parts.append(f"{record['bits_per_byte']:.3f} bit/byte")
    speed = record["tokens_per_second"]
    parts += [f"{quantity(speed)} tok/s", f"{quantity(record['tokens_per_accelerator_hour'])} tok/h"]
    if record["mfu_causal"] is not None:
        parts.append(f"mfu {record['mfu_causal']:.1%}")
    parts.append(f"data {record['data_wait']:.1%}")
    total = plan.hours(plan.tokens)
    spent = plan.hours(tokens)
    if total is not None and spent is not None:
        parts.append(f"budget {hours(spent, total)}")
    else:
        parts.append(f"budget {quantity(tokens)}/{quantity(plan.tokens)} tok")
    parts += [f"eta {duration((plan.tokens - tokens) / speed)}", f"{record['memory_gib']:.1f}GiB"]
    if record["skipped"]:
        parts.append(f"skipped {record['skipped']}")
    return " | ".join(parts)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A small table on the standard output."""
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*row)
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(made)


def plot_loss(records: Sequence[Mapping[str, Any]], path: Path, unigram_nats: float, title: str) -> None:
    """Training and validation loss (nats per token) over protocol hours, or tokens where hours are not known."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    timed = all(record.get("protocol_hours") is not None for record in records)
    axis, unit, label = ("protocol_hours", 1.0, "accelerator hours (protocol)") if timed else ("tokens", 1.0, "tokens")
    if timed and records and records[-1][axis] < 1:
        unit, label = 60.0, "accelerator minutes (protocol)"
    room = {"left": 0.1, "right": 0.97, "bottom": 0.12, "top": 0.92}  # tight_layout finds it by drawing all twice
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120, gridspec_kw=room)
    for key, name, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(record[axis] * unit, record[key]) for record in records if record.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, markersize=4, linewidth=1.2)
    axes.axhline(unigram_nats, color="grey", linestyle=":", linewidth=1, label="unigram model")
    axes.set_xlabel(label)
    axes.set_ylabel("loss, nats per token")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)
