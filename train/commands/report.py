"""`hotplate report RUNS... -o report.html`: one page with every figure and table of a comparison."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hotplate.train import console, settings
from hotplate.train.errors import InputError
from hotplate.train.science.comparison import Question
from hotplate.train.science.observations import find_runs
from hotplate.train.science.report import compare, draw, record, render


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A self-contained page about finished runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders or folders of runs"""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "report.html"
    """the page; its figures go beside it as PNG, in a folder of the same name"""
    title: str = "Language models at equal compute"
    bench: str | None = None
    """a result of hotplate bench: adds its kernels' speed of light"""
    horizon: float | None = None
    """hours to look ahead; none = 1000 times the longest measured class"""
    json: str | None = None
    """also write the numbers to this file"""
    question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)


def main(arguments: Sequence[str]) -> int:
    """`hotplate report runs/science -o science.html`."""
    config = settings.parse(ReportConfig(), arguments, "hotplate report")
    if not config.runs:
        raise InputError("hotplate report: want run folders or folders of runs; e.g. hotplate report runs/science")
    made = compare(find_runs(config.runs), config.question, config.horizon)
    drawn = draw(made)
    command = shlex.join(["hotplate", "report", *arguments])
    text = render(made, drawn, config.title, command, None if config.bench is None else Path(config.bench))
    out = Path(config.out)
    pictures = out.with_suffix("")
    if pictures == out:
        raise InputError(f"--out {config.out}: want a file name that ends in .html")
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        for each in drawn:
            each.png(pictures / f"{each.name}.png")
        if config.json:
            Path(config.json).write_text(json.dumps(record(made), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written: {error.strerror}") from error
    console.say(f"page        {out}\nfigures     {', '.join(str(pictures / f'{each.name}.png') for each in drawn)}")
    for reason in made.missing:
        console.complain(f"not fitted: {reason}")
    return 0
