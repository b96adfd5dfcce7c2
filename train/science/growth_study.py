"""Is a model grown from a trained small one better than the same model from scratch? Measured, with seeds and billing.

Per target (wider, deeper) and seed: a small model is trained; the large one is trained from scratch and from the small
one grown in each of several ways, on the same data in the same order with the same schedule, every way at its own best
learning rate of one grid (found on the first seed). The scratch model's final validation loss is the mark. A way's gain
is the tokens (accelerator-seconds) that scratch needed for it over those of the grown model, without and with the small
model's training; gains are averaged over seeds as logarithms, with Student's interval.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.stats

from hotplate.model.growth.depth import Depth
from hotplate.model.growth.factors import Factors, grown_config
from hotplate.model.growth.strategies import Strategy
from hotplate.train import checkpoint, settings
from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.growing import write_grown
from hotplate.train.run import run
from hotplate.train.sinks import read_records

SCRATCH = "scratch"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to grow."""

    name: str = ""
    factors: Factors = field(default_factory=Factors)
    strategy: Strategy = field(default_factory=Strategy)
    depth: Depth = "identity"
    moments: Literal["keep", "fresh"] = "fresh"
    rates: Literal["plain", "scaled"] = "plain"

    @property
    def target(self) -> str:
        """The large models that share a scratch run."""
        return (
            "-".join(f"{key}{value}" for key, value in vars(self.factors).items() if value not in (1, None)) or "same"
        )


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What is trained. `train` holds fields of every run."""

    preset: str = "decoder-nano"
    """the small model"""
    small_steps: int = 400
    large_steps: int = 400
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (3e-3,)
    """learning rates that every way, and scratch, chooses from"""
    folder: str = "runs/growth"
    ways: tuple[Way, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)


def load_plan(values: dict[str, Any], where: str) -> StudyPlan:
    """The plan in a parsed TOML file. InputError for unknown keys, types or ways."""
    ways = values.pop("way", None)
    if not isinstance(ways, dict) or not ways or not all(isinstance(way, dict) for way in ways.values()):
        raise InputError(f"{where}: want tables [way.NAME], one per way to grow")
    train = values.pop("train", {})
    if not isinstance(train, dict):
        raise InputError(f"{where}: train: want a table, got {train!r}")
    parsed = tuple(settings.merge(Way(name=name), table, f"{where}: way.{name}") for name, table in ways.items())
    plan = settings.merge(StudyPlan(), values, where)
    if len(plan.seeds) < 2:
        raise InputError(f"{where}: seeds: want two or more, got {list(plan.seeds)}: one has no interval")
    return dataclasses.replace(plan, ways=parsed, train=train)


@dataclass(frozen=True)
class Curve:
    """Validation loss against tokens of one run."""

    tokens: tuple[int, ...]
    losses: tuple[float, ...]

    def tokens_to(self, loss: float) -> float | None:
        """Tokens after which the loss is first at most `loss`, linear between validations; None if it never is."""
        for n, value in enumerate(self.losses):
            if value <= loss:
                if n == 0:
                    return float(self.tokens[0])
                above, before = self.losses[n - 1], self.tokens[n - 1]
                return before + (self.tokens[n] - before) * (above - loss) / (above - value)
        return None


def read_curve(folder: Path) -> Curve:
    """From a finished run's metrics.jsonl. InputError when it holds no validation."""
    records = read_records(folder / "metrics.jsonl")
    points = [(r["tokens"], r["validation_loss"]) for r in records if {"tokens", "validation_loss"} <= r.keys()]
    if not points:
        raise InputError(f"{folder / 'metrics.jsonl'}: no validation in it; delete {folder}: it is trained again then")
    return Curve(tuple(p[0] for p in points), tuple(p[1] for p in points))


class Study:
    """Runs of one plan in its folder; what is there already is not trained again."""

    def __init__(self, plan: StudyPlan, where: str, say: Say) -> None:
        self.plan, self.say = plan, say
        self.folder = Path(plan.folder)
        base = settings.merge(settings.load_preset(plan.preset), plan.train, f"{where}: train")
        self.small = dataclasses.replace(base, budget=f"{plan.small_steps}steps")
        try:
            self.large = {way.target: grown_config(base.model, way.factors) for way in plan.ways}
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error

    def _train(self, config: TrainConfig, folder: Path, seed: int, start: Path | None = None) -> Path:
        """A finished run in `folder`, trained now if it is not there."""
        if not (folder / "summary.json").is_file():
            keeps = start is not None and bool(checkpoint.find(start).optimizer)
            where = dataclasses.replace(
                config.run,
                folder=str(folder),
                resume="auto",
                start=None if start is None else str(start),
                start_optimizer=keeps,
            )
            self.say(f"{folder.relative_to(self.folder)}")
            run(dataclasses.replace(config, seed=seed, run=where), "growth")
            if not (folder / "summary.json").is_file():
                raise InputError(f"{folder}: stopped by a signal; the same command goes on from there")
        return folder

    def small_run(self, seed: int) -> Path:
        return self._train(self.small, self.folder / "small" / f"seed-{seed}", seed)

    def large_run(self, target: str, way: Way | None, rate: float, seed: int) -> Path:
        """The large model from scratch (`way` None) or grown."""
        name = SCRATCH if way is None else way.name
        folder = self.folder / target / name / f"rate-{rate:g}" / f"seed-{seed}"
        base, start = self.small.model, None
        model = dataclasses.replace(
            self.large[target], embedding_scale=base.embedding_scale, logit_scale=base.logit_scale
        )
        if way is not None:
            start = self.folder / target / name / f"start-{seed}"
            if not start.exists():
                write_grown(
                    start,
                    checkpoint.find(self.small_run(seed)),
                    way.factors,
                    way.strategy,
                    depth=way.depth,
                    keep_moments=way.moments == "keep",
                    scaled_rates=way.rates == "scaled",
                )
            model = settings.load_preset(str(start)).model
        optimizer = dataclasses.replace(self.small.optimizer, lr=rate)
        config = dataclasses.replace(
            self.small, model=model, optimizer=optimizer, budget=f"{self.plan.large_steps}steps"
        )
        return self._train(config, folder, seed, start)

    def best_rate(self, target: str, way: Way | None) -> float:
        """The rate with the lowest final validation loss on the first seed."""
        seed = self.plan.seeds[0]
        finals = {r: read_curve(self.large_run(target, way, r, seed)).losses[-1] for r in self.plan.rates}
        return min(finals, key=lambda rate: finals[rate])

    def curves(self, target: str, way: Way | None) -> tuple[float, list[Curve]]:
        """The best rate and a curve per seed at it."""
        rate = self.best_rate(target, way)
        return rate, [read_curve(self.large_run(target, way, rate, seed)) for seed in self.plan.seeds]


@dataclass(frozen=True)
class Gain:
    """Geometric mean over seeds with a 95 % interval; None where a seed never reached the mark."""

    mean: float | None
    low: float | None
    high: float | None
    reached: int  # seeds


def gain(ratios: Sequence[float | None]) -> Gain:
    """Of scratch's cost over the way's, per seed."""
    found = [math.log(ratio) for ratio in ratios if ratio is not None]
    if len(found) < len(ratios) or len(found) < 2:
        return Gain(None, None, None, len(found))
    mean = float(np.mean(found))
    half = float(scipy.stats.t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / math.sqrt(len(found)))
    return Gain(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(found))


def compare(study: Study, seconds_per_token: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per way: gains in tokens and in accelerator-seconds, without and with the small model's training.

    seconds_per_token: measured, for "small" and every target.
    """
    plan, rows = study.plan, []
    paid_small = plan.small_steps * study.small.batch * study.small.data.window
    for target in study.large:
        scratch_rate, scratch = study.curves(target, None)
        marks = [curve.losses[-1] for curve in scratch]
        whole = [float(curve.tokens[-1]) for curve in scratch]
        rows.append(
            {
                "target": target,
                "way": SCRATCH,
                "rate": scratch_rate,
                "first_loss": [curve.losses[0] for curve in scratch],
                "final_loss": marks,
                "curves": [dataclasses.asdict(curve) for curve in scratch],
            }
        )
        for way in (way for way in plan.ways if way.target == target):
            rate, curves = study.curves(target, way)
            needed = [curve.tokens_to(mark) for curve, mark in zip(curves, marks, strict=True)]
            dearer = seconds_per_token["small"] / seconds_per_token[target]
            billed = [None if n is None else n + paid_small * dearer for n in needed]
            in_tokens = [None if n is None else n + paid_small for n in needed]

            def ratios(costs: Sequence[float | None], whole: Sequence[float] = whole) -> Gain:
                return gain([None if c is None or c <= 0 else w / c for w, c in zip(whole, costs, strict=True)])

            rows.append(
                {
                    "target": target,
                    "way": way.name,
                    "rate": rate,
                    "first_loss": [curve.losses[0] for curve in curves],
                    "final_loss": [curve.losses[-1] for curve in curves],
                    "tokens_to_mark": needed,
                    "gain_tokens": dataclasses.asdict(ratios(needed)),
                    "gain_tokens_billed": dataclasses.asdict(ratios(in_tokens)),
                    "gain_seconds_billed": dataclasses.asdict(ratios(billed)),
                    "curves": [dataclasses.asdict(curve) for curve in curves],
                }
            )
    return rows
