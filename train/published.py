"""Published throughputs, budgets and scores of the protocol, as data (`published.toml`): a budget for a reference card
can be computed without owning it."""

import difflib
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotplate.model.config import ModelConfig
from hotplate.model.presets import PRESETS
from hotplate.train.errors import InputError

FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class PublishedRun:
    """One best configuration of a compute class."""

    budget: str
    model: str
    batch: int
    steps: int


@dataclass(frozen=True)
class PublishedCrossing:
    """Where the paper's extrapolated laws meet."""

    leading: str
    overtaking: str
    hours: float


def _table() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def card_key(name: str) -> str:
    """The same for `RTX 3090` and `rtx3090`: they are one card."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def throughputs(reference: str) -> tuple[str, dict[str, tuple[float, int]]]:
    """(the card's name, model -> (tokens/s, rows)). InputError when nothing is published for the card."""
    cards = _table()["throughput"]
    found = [name for name in cards if card_key(name) == card_key(reference)]
    if not found:
        near = difflib.get_close_matches(reference, cards, 1)
        hint = f"did you mean {near[0]}?" if near else f"published: {', '.join(cards)}"
        raise InputError(f"--reference {reference!r}: no published throughput; {hint}")
    return found[0], {model: (float(speed), rows) for model, (speed, rows) in cards[found[0]].items()}


def reference_throughput(reference: str, model: ModelConfig) -> float:
    """Published tokens/s of `model` on `reference`. InputError when the model is not one of the published ones."""
    card, rows = throughputs(reference)
    name = model_name(model)
    if name not in rows:
        what = f"{name} there" if name else "a model of these sizes"
        raise InputError(
            f"--reference {reference!r}: no published throughput of {what}; published for the {card}: "
            f"{', '.join(rows)}; measure it on that card and give --tokens-per-second"
        )
    return rows[name][0]


def model_name(model: ModelConfig) -> str | None:
    """The preset with these sizes, whatever kernels compute it; None when there is none."""

    def sizes(config: ModelConfig) -> ModelConfig:
        return replace(config, mixer=replace(config.mixer, impl="auto"))

    return next((name for name, preset in PRESETS.items() if sizes(preset) == sizes(model)), None)


def best_runs() -> list[PublishedRun]:
    """The published best configurations."""
    return [PublishedRun(row["class"], row["model"], row["batch"], row["steps"]) for row in _table()["run"]]


def published_crossing() -> PublishedCrossing:
    """The abstract's crossing."""
    row = _table()["crossing"]
    return PublishedCrossing(row["leading"], row["overtaking"], float(row["hours"]))
