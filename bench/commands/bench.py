"""hotplate bench: times kernels against their peers and writes the numbers down."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from hotplate.bench import registry
from hotplate.bench.harness import Row, WrongResult, measure, record, result_path, write_json
from hotplate.train.errors import InputError

RESULTS = Path(__file__).resolve().parent.parent / "results"
ROUNDS, QUICK_ROUNDS = 15, 5


@dataclass(frozen=True)
class Options:
    """Time kernels against their peers, side by side, after checking each against float64."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Benchmarks to run; none: all of them."""
    json: Path | None = None
    """Where the rows go; not given: bench/results/<machine>-<date>.json, and nowhere with --quick."""
    quick: bool = False
    """Small shapes and few rounds: shows that everything runs, says little about speed."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda."""
    threads: int = 1
    """CPU threads; with 1, wall and processor time are comparable."""


def table(rows: list[Row]) -> Table:
    """The rows for the screen, with each provider's time as a multiple of the case's first provider."""
    shown = Table("case", "provider", "ms", "p20..p80", "cpu ms", "x first", "% of floor", "tokens/s", "error")
    first: dict[tuple[str, str, str], float] = {}
    for row in rows:
        baseline = first.setdefault((row.bench, row.case, row.dtype), row.ms_median)
        shown.add_row(
            f"{row.bench} {row.case} {row.dtype}",
            row.provider,
            f"{row.ms_median:.3g}",
            f"{row.ms_p20:.3g}..{row.ms_p80:.3g}",
            "" if row.cpu_ms_median is None else f"{row.cpu_ms_median:.3g}",
            f"{row.ms_median / baseline:.2f}",
            "" if row.floor_ms is None else f"{100 * row.floor_ms / row.ms_median:.0f}",
            "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
            f"{row.max_err:.1e}",
        )
    return shown


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 when a provider computes something else than its case asks for."""
    options = tyro.cli(Options, args=arguments, prog="hotplate bench")
    known = registry.names()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        raise InputError(f"bench: no benchmark called {', '.join(unknown)}; known: {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("bench: --device cuda, but torch sees no GPU here; use --device cpu")
    if options.device not in ("cpu", "cuda"):
        raise InputError(f"bench: --device {options.device} is neither cpu nor cuda")
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    try:
        for name in options.names or known:
            for case in registry.cases(name, options.device, options.quick):
                rows += measure(case, QUICK_ROUNDS if options.quick else ROUNDS)
    except WrongResult as wrong:
        print(f"bench: {wrong}", file=sys.stderr)
        return 1
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    facts = record(options.device)
    path = options.json or (None if options.quick else result_path(RESULTS, facts))
    if path is not None:
        write_json(path, rows, facts)
        print(f"wrote {path}")
    return 0
