"""What a comparison is made of: one observation per finished run, or per point of a table.

A run folder gives its held-out score and what it cost on four axes: accelerator-hours (of the protocol: tokens over the
throughput measured before training), tokens, training FLOPs, parameters. A table (.toml or .json) gives the same:

    metric = "normalised_perplexity"
    [[point]]
    family = "gpt"
    value = 2.25
    tokens = 1.197e9
    tokens_per_second = 55416      # or hours = 6.0
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy import ndarray

from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.train import checkpoint, published
from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.growing import final_model
from hotplate.train.settings import merge
from hotplate.train.untrusted import parse_json

Metric = Literal["normalised_perplexity", "normalised_perplexity_characters", "bits_per_byte", "loss", "perplexity"]
Axis = Literal["hours", "tokens", "flops", "parameters"]
Grouping = Literal["architecture", "model"]
PER_TOKEN = ("loss", "perplexity")  # comparable only between runs that cut the text into the same tokens
UNITS = {"hours": "accelerator-hours", "tokens": "tokens", "flops": "training FLOPs", "parameters": "parameters"}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One score and its costs; None where a table does not say."""

    family: str
    value: float
    model: str = ""
    budget: str = ""
    seed: int = 0
    hours: float | None = None
    tokens: float | None = None
    flops: float | None = None
    parameters: float | None = None
    tokens_per_second: float | None = None
    accelerator: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if isinstance(number, float) and not 0 < number < float("inf"):
                raise ValueError(f"want a positive number for {field.name}, got {number}")


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    path: Path
    config: TrainConfig
    preset: str
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def accelerator(self) -> str:
        """What its hours are hours of."""
        return self.config.reference or str(self.environment["name"])


def architecture(model: ModelConfig) -> str:
    """gpt, decoder (attention without learned positions), or the recurrent mixer's name."""
    if model.mixer.kind != "attention":
        return model.mixer.kind
    return "gpt" if model.positions == "learned" else "decoder"


def find_runs(paths: Sequence[str]) -> list[Run]:
    """Run folders among and below `paths`, by model and tokens. InputError for a path without one, and for an
    unfinished run."""
    folders: dict[Path, None] = {}
    for name in paths:
        path = Path(name)
        found = sorted(file.parent for file in [*path.glob("config.toml"), *path.glob("**/config.toml")])
        if not found:
            raise InputError(f"{path}: {'no run in this folder' if path.is_dir() else 'no such folder'}; train first")
        folders |= dict.fromkeys(found)
    return sorted((read_run(folder) for folder in folders), key=lambda run: (run.preset, run.summary["tokens"]))


def read_run(folder: Path) -> Run:
    """The finished run in `folder`. InputError when it is unfinished or its files are not a run's."""
    if not (folder / "summary.json").is_file():
        steps = checkpoint.listing(folder / "checkpoints")
        reached = f"it stopped at or after step {checkpoint.step_of(steps[-1])}" if steps else "it has no checkpoint"
        raise InputError(
            f"{folder}: unfinished, {reached}; go on with the same command and --run.resume auto, or leave it out"
        )
    try:
        table = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        summary = parse_json((folder / "summary.json").read_text(encoding="utf-8"))
        environment = parse_json((folder / "environment.json").read_text(encoding="utf-8"))
        facts = summary["splits"], summary["tokens"], summary["budget"], environment["plan"]["tokens_per_second"]
        preset = table.pop("preset")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: not a run folder of this version: {type(error).__name__} {error}") from error
    assert facts
    return Run(folder, merge(TrainConfig(), table, str(folder / "config.toml")), preset, summary, environment)


def observe(run: Run, metric: Metric, split: str, grouping: Grouping) -> Observation:
    """The run's score on `split` and what it cost; a run that grows counts with both models' FLOPs and the parameters
    of the last. InputError when the run did not score the split."""
    splits = run.summary["splits"]
    if split not in splits:
        raise InputError(f"{run.path}: no split {split!r} in its summary; it scored {', '.join(splits) or 'none'}")
    first, last = (cost(model, run.config.data.window) for model in (run.config.model, final_model(run.config)))
    plan, tokens = run.environment["plan"], float(run.summary["tokens"])
    early = tokens if plan.get("grows_after") is None else float(plan["grows_after"] * plan["tokens_per_step"])
    return Observation(
        family=run.preset if grouping == "model" else architecture(run.config.model),
        value=float(splits[split][metric]),
        model=run.preset,
        budget=run.summary["budget"],
        seed=run.config.seed,
        hours=run.summary["protocol_hours"],
        tokens=tokens,
        flops=early * first.training_flops + (tokens - early) * last.training_flops,
        parameters=float(last.parameters),
        tokens_per_second=plan["tokens_per_second"],
        accelerator=run.accelerator,
        source=str(run.path),
    )


def check_comparable(runs: Sequence[Run], metric: Metric, split: str) -> None:
    """InputError when runs scored different text, or per token with different tokens."""
    scored = [(run, run.summary["splits"].get(split)) for run in runs]
    known = [(run, found) for run, found in scored if found is not None]
    for run, found in known[1:]:
        first, reference = known[0]
        for count in ("bytes", "targets") if metric in PER_TOKEN else ("bytes",):
            if found[count] != reference[count]:
                raise InputError(
                    f"{run.path} and {first.path} scored different {split} text: {found[count]:,} and "
                    f"{reference[count]:,} {count}; "
                    + (
                        f"{metric} is per token: compare tokenisers by --metric normalised_perplexity"
                        if count == "targets"
                        else "evaluate them on the same data first"
                    )
                )


def gather(paths: Sequence[str], metric: Metric, split: str, grouping: Grouping) -> list[Observation]:
    """Observations of runs and tables (`published` is the shipped one) among `paths`. InputError for none, a bad file,
    or mixed metrics."""
    if not paths:
        raise InputError("want run folders, sweep folders, or tables of points (.toml, .json); got none")
    paths = [str(published.FILE) if path == "published" else path for path in paths]
    tables = [path for path in paths if path.endswith((".toml", ".json"))]
    folders = [path for path in paths if path not in tables]
    runs = find_runs(folders) if folders else []
    check_comparable(runs, metric, split)
    found = [observe(run, metric, split, grouping) for run in runs]
    for path in tables:
        found += read_table(Path(path), metric)
    return found


def read_table(path: Path, metric: Metric) -> list[Observation]:
    """The points of a table. InputError for anything that is not one, or for another metric."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else parse_json(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as a table of points: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("point"), list) or not values["point"]:
        raise InputError(f"{path}: want metric = ... and one or more [[point]], got {str(values)[:80]}")
    if values.get("metric") != metric:
        raise InputError(
            f"{path}: its metric is {values.get('metric')!r}, asked for {metric!r}; choose one by --metric"
        )
    return [_point(values, f"{path}: point {number}") for number, values in enumerate(values["point"], 1)]


def _point(values: Any, where: str) -> Observation:
    if not isinstance(values, Mapping) or not {"family", "value"} <= set(values):
        raise InputError(f"{where}: want at least family and value, got {values!r}")
    point = merge(Observation(family="", value=1.0, source=where), values, where)
    if point.hours is None and point.tokens is not None and point.tokens_per_second is not None:
        try:
            return dataclasses.replace(point, hours=point.tokens / point.tokens_per_second / 3600)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
    return point


def families(observations: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Observations by family, in order of appearance."""
    groups: dict[str, list[Observation]] = {}
    for observation in observations:
        groups.setdefault(observation.family, []).append(observation)
    return groups


def coordinates(observations: Sequence[Observation], axis: Axis) -> tuple[ndarray, ndarray]:
    """(x, y). InputError when a cost is missing, or hours are of different accelerators."""
    missing = [observation.source for observation in observations if getattr(observation, axis) is None]
    if missing:
        hint = "; a budget in tokens or steps has no hours unless --tokens-per-second was given" * (axis == "hours")
        raise InputError(f"{missing[0]}: no {axis} known{hint}; choose another axis")
    cards = {published.card_key(observation.accelerator): observation.accelerator for observation in observations}
    if axis == "hours" and len(cards) > 1:
        named = ", ".join(map(repr, sorted(cards.values())))
        raise InputError(
            f"hours of different accelerators cannot be compared: {named}; use tokens or FLOPs, "
            "or re-derive the budgets for one card with --reference"
        )
    x = np.array([float(getattr(observation, axis)) for observation in observations])
    return x, np.array([observation.value for observation in observations])
