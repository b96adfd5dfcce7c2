"""Rows for the screen."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from hotplate.bench.results import Row
from hotplate.train.console import quantity

WIDTH = 200  # of a screen that is a file


def table(rows: Iterable[Row]) -> Table:
    """Each provider's time as a multiple of the case's first provider, and as a share of the floor."""
    shown = Table(
        *("case", "provider", "ms", "p20..p80", "cpu ms", "x first", "% of floor", "B/s", "FLOP/s"),
        *("tokens/s", "Mtok/h", "peak MiB", "error"),
    )
    first: dict[tuple[str, str, str], float] = {}
    for row in rows:
        baseline = first.setdefault(row.key, row.ms_median)
        shown.add_row(
            f"{row.bench} {row.case} {row.dtype}",
            row.provider,
            f"{row.ms_median:.3g}",
            f"{row.ms_p20:.3g}..{row.ms_p80:.3g}",
            "" if row.cpu_ms_median is None else f"{row.cpu_ms_median:.3g}",
            f"{row.ms_median / baseline:.2f}",
            "" if row.floor_share is None else f"{100 * row.floor_share:.0f}",
            "" if row.bytes_per_s is None else quantity(row.bytes_per_s),
            "" if row.flops_per_s is None else quantity(row.flops_per_s),
            "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
            "" if row.mtokens_per_hour is None else f"{row.mtokens_per_hour:,.1f}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.1f}",
            f"{row.max_err:.1e}",
        )
    return shown


def show(rows: Iterable[Row]) -> None:
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table(rows))
