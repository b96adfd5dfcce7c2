"""From runs to a page and a record: everything that a comparison found, what it rests on, and how to make it again."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotplate.train.console import duration, quantity
from hotplate.train.errors import InputError
from hotplate.train.published import card_key
from hotplate.train.science import figures, page
from hotplate.train.science.comparison import (
    Question,
    amount,
    crossing_record,
    crossings,
    describe_fit,
    edge,
    fit_columns,
    fit_families,
    fit_record,
    note,
    reach,
)
from hotplate.train.science.crossing import Crossing
from hotplate.train.science.figures import Drawing, colours
from hotplate.train.science.laws import Fit
from hotplate.train.science.observations import Axis, Observation, Run, check_comparable, observe
from hotplate.train.sinks import read_records
from hotplate.train.untrusted import parse_json

AXES: tuple[Axis, ...] = ("hours", "tokens", "flops")


@dataclass
class Comparison:
    """What a report is made of."""

    question: Question
    runs: list[Run]
    observations: list[Observation]
    fits: dict[Axis, dict[str, Fit]] = field(default_factory=dict)
    met: list[Crossing] = field(default_factory=list)
    horizon: float = 0.0
    missing: list[str] = field(default_factory=list)  # what could not be fitted, and why

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Costs that every run has, in comparable units."""
        one_card = len({card_key(observation.accelerator) for observation in self.observations}) == 1
        timed = one_card and all(observation.hours is not None for observation in self.observations)
        return AXES if timed else AXES[1:]


def compare(runs: list[Run], question: Question, horizon: float | None) -> Comparison:
    """Everything that can be said about the runs; what cannot is named in `missing`. InputError for mixed runs."""
    check_comparable(runs, question.metric, question.split)
    observations = [observe(run, question.metric, question.split, question.group) for run in runs]
    made = Comparison(question, runs, observations)
    for axis in made.axes:
        try:
            made.fits[axis] = fit_families(observations, axis, question)
        except InputError as error:
            made.missing.append(str(error))
    if "hours" not in made.axes:
        made.missing.append("hours: the runs have none in common (budgets in tokens or steps, or several accelerators)")
    if "hours" in made.fits and len(made.fits["hours"]) > 1:
        made.horizon = reach(made.fits["hours"], horizon)
        made.met = crossings(made.fits["hours"], horizon)
    return made


def draw(made: Comparison) -> list[Drawing]:
    """The figures, in the order of the page."""
    paint = colours(observation.family for observation in made.observations)
    metric, level = made.question.metric, made.question.bootstrap.level
    drawn = []
    if made.fits:
        drawn.append(figures.laws(made.fits, paint, metric, level, "laws", "Scaling laws"))
    if made.met:
        drawn.append(figures.crossing_figure(made.fits["hours"], made.met, made.horizon, paint, metric))
    records = [read_records(run.path / "metrics.jsonl") for run in made.runs]
    drawn.append(
        figures.learning_curves(list(zip(made.observations, records, strict=True)), made.axes, paint),
    )
    speeds, paid = {}, {}
    for model, members in by_model(made).items():
        colour = paint[members[0][1].family]
        training = [_training_speed(run) for run, _ in members]
        speeds[model] = (colour, members[0][1].tokens_per_second or 0.0, statistics.median(training))
        paid[model] = (colour, _total_paid([run for run, _ in members]))
    drawn.append(figures.throughput_and_goodput(speeds, paid))
    return drawn


def by_model(made: Comparison) -> dict[str, list[tuple[Run, Observation]]]:
    groups: dict[str, list[tuple[Run, Observation]]] = {}
    for run, observation in zip(made.runs, made.observations, strict=True):
        groups.setdefault(observation.model, []).append((run, observation))
    return groups


def _training_speed(run: Run) -> float:
    """Median tokens/s per accelerator between reports."""
    records = read_records(run.path / "metrics.jsonl")
    speeds = [record["tokens_per_accelerator_hour"] / 3600 for record in records if "loss" in record]
    return statistics.median(speeds) if speeds else 0.0


def _total_paid(runs: Sequence[Run]) -> dict[str, float]:
    total: dict[str, float] = {}
    for run in runs:
        for phase, seconds in run.summary["paid_seconds"].items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total


def render(made: Comparison, drawn: Sequence[Drawing], title: str, command: str, bench: Path | None) -> str:
    """The page."""
    paint = colours(observation.family for observation in made.observations)
    figure = {each.name: each for each in drawn}
    sections: list[str] = [page.findings(_findings(made)), _scores(made, paint)]
    reasons = [page.paragraph(f"Not fitted: {reason}", "note") for reason in made.missing]
    if made.fits:
        tables = [
            page.table(
                fit_columns(made.question.form),
                [[page.dot(paint[f], f), *describe_fit(f, found, axis)[1:]] for f, found in families.items()],
            )
            for axis, families in made.fits.items()
            if axis == made.axes[0]
        ]
        parts = [page.drawing(figure["laws"]), *tables, page.paragraph(note(made.question), "note"), *reasons]
        sections.append(page.section("Scaling laws", *parts))
    elif reasons:
        sections.append(page.section("Scaling laws", *reasons))
    if made.met:
        sections.append(page.section("Extrapolation and crossings", page.drawing(figure["crossing"]), _crossings(made)))
    sections.append(page.section("Learning curves", page.drawing(figure["curves"])))
    sections.append(page.section("Throughput and goodput", page.drawing(figure["throughput"])))
    if bench is not None:
        sections.append(speed_of_light(bench))
    sections.append(_provenance(made, command))
    models = ", ".join(by_model(made))
    budgets = list(dict.fromkeys(observation.budget for observation in made.observations))
    lead = (
        f"{models}; {len(made.runs)} runs at {', '.join(budgets)} on {made.observations[0].accelerator}, scored by "
        f"{made.question.metric.replace('_', ' ')} on the {made.question.split} split."
    )
    return page.page(title, lead, sections)


def _findings(made: Comparison) -> list[tuple[str, str]]:
    """The main numbers: best score, the leader's law, the first crossing."""
    best = min(made.observations, key=lambda observation: observation.value)
    found = [(f"{best.value:.4f}", f"best {made.question.metric.replace('_', ' ')}: {best.model} at {best.budget}")]
    axis = made.axes[0]
    if fits := made.fits.get(axis):
        steepest = min(fits, key=lambda family: float(fits[family].law.b))
        low, high = fits[steepest].parameter_interval("b")
        told = (
            f"steepest exponent over {axis}: {steepest}, {made.question.bootstrap.level:.0%} in [{low:.3f}, {high:.3f}]"
        )
        found.append((f"{float(fits[steepest].law.b):.3f}", told))
    if made.met:
        first = min(made.met, key=lambda crossing: crossing.at or float("inf"))
        far = amount(made.horizon, "hours")
        told = f"{first.overtaking} meets {first.leading}; no crossing by {far} in {first.never:.0%} of the replicates"
        found.append((edge(first.at, "hours", made.horizon), told))
    return found


def _scores(made: Comparison, paint: Mapping[str, str]) -> str:
    rows = []
    groups: dict[tuple[str, str], list[tuple[Run, Observation]]] = {}
    for run, observation in zip(made.runs, made.observations, strict=True):
        groups.setdefault((observation.model, observation.budget), []).append((run, observation))
    for (model, budget), members in groups.items():
        run, one = members[0]
        values = [observation.value for _, observation in members]
        scored = [run.summary["splits"][made.question.split] for run, _ in members]
        spread = f"±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        rows.append(
            [
                page.dot(paint[one.family], model),
                budget,
                str(len(members)),
                quantity(one.parameters or 0.0),
                quantity(one.tokens or 0.0),
                quantity(one.flops or 0.0),
                page.with_range(f"{statistics.mean(values):.4f}", spread),
                f"{statistics.mean(split['bits_per_byte'] for split in scored):.4f}",
                f"{statistics.mean(split['loss'] for split in scored):.4f}",
                f"{statistics.mean(split['top1_accuracy'] for split in scored):.1%}",
            ]
        )
    metric = made.question.metric.replace("_", " ")
    columns = ["model", "class", "seeds", "parameters", "tokens", "FLOPs", metric, "bits/byte", "loss", "top-1"]
    told = page.paragraph("Means over seeds; ± is the standard deviation of one run.", "note")
    return page.section("Held-out scores", page.table(columns, rows), told)


def _crossings(made: Comparison) -> str:
    rows = [
        [
            f"{found.overtaking} meets {found.leading}",
            edge(found.at, "hours", made.horizon),
            f"{edge(found.low, 'hours', made.horizon)} to {edge(found.high, 'hours', made.horizon)}",
            page.bar(found.never),
        ]
        for found in made.met
    ]
    level = f"{made.question.bootstrap.level:.0%} interval"
    return page.table(["families", "crossing", level, f"no crossing by {amount(made.horizon, 'hours')}"], rows)


def speed_of_light(path: Path) -> str:
    """Measured kernels of a bench result beside the least time that their bytes and FLOPs need."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        rows = [
            [
                f"{row['bench']} {row['case']}",
                str(row["provider"]),
                str(row["dtype"]),
                _milliseconds(row["floor_ms"]),
                _milliseconds(row["ms_median"]),
                page.bar(row["floor_ms"] / row["ms_median"]),
            ]
            for row in values["rows"]
            if row["floor_ms"] is not None
        ]
        machine, date = values["machine"]["name"], str(values["machine"]["date"])[:10]
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise InputError(f"{path}: not a bench result: {type(error).__name__} {error}") from error
    told = page.paragraph(f"{path.name}: {machine}, {date}. Floor: bytes over bandwidth or FLOPs over rate.", "note")
    columns = ["case", "provider", "dtype", "floor ms", "ms", "speed of light"]
    return page.section("Kernels", page.folded(f"{len(rows)} cases", page.table(columns, rows)), told)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _provenance(made: Comparison, command: str) -> str:
    environment = made.runs[0].environment
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    paid = sum(run.summary["paid_hours"] for run in made.runs) * 3600
    facts = [
        f"machine    {environment['name']}, {environment['cores']} cores, {environment['threads']} threads",
        f"versions   {versions}, Python {environment['python']}",
        f"revision   {environment['revision']}",
        f"paid       {duration(paid)} of accelerator time",
    ]
    lines = [str(run.environment.get("command", run.path)).replace("main.py", "hotplate train", 1) for run in made.runs]
    return page.section(
        "How to make it again", page.code(facts), page.code([command]), page.folded("every run", page.code(lines))
    )


def record(made: Comparison) -> dict[str, Any]:
    """The comparison as JSON-like values, with the machine named."""
    return {
        "machine": made.runs[0].environment,
        "metric": made.question.metric,
        "split": made.question.split,
        "intervals": note(made.question),
        "runs": [
            {
                "model": observation.model,
                "family": observation.family,
                "class": observation.budget,
                "seed": observation.seed,
                "value": observation.value,
                "hours": observation.hours,
                "tokens": observation.tokens,
                "flops": observation.flops,
                "parameters": observation.parameters,
                "tokens_per_second": observation.tokens_per_second,
                "goodput": run.summary["goodput"],
                "paid_hours": run.summary["paid_hours"],
                "score": run.summary["splits"][made.question.split],
            }
            for run, observation in zip(made.runs, made.observations, strict=True)
        ],
        "fits": {
            axis: {family: fit_record(found, axis) for family, found in families.items()}
            for axis, families in made.fits.items()
        },
        "crossings": [crossing_record(found) for found in made.met],
        "not_fitted": made.missing,
    }
