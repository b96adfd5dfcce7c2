"""Several models of the same units side by side: held-out loss, accuracies over pairs, and margins of preference."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from hotplate.model.cost import cost
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.pairs import PairSource, read_pairs
from hotplate.train.data.units import UnitTokenizer
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.evaluate.perplexity import evaluate_split
from hotplate.train.reference import reference_scores
from hotplate.train.science.figures import FAMILIES, PALETTE, STYLE
from hotplate.train.sinks import read_records
from hotplate.train.speech.encoder import UnitEncoder
from hotplate.train.speech.evaluation import ReadConfig, Speaking, encode_pairs, open_model, score_pairs
from hotplate.train.speech.likelihood import compare
from hotplate.train.trained import Trained

ROWS = 8  # of a batch of triplets


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ReadConfig):
    """What the models are measured on."""

    pairs: tuple[str, ...] = ()
    """NAME=FOLDER of wav files"""
    triplets: str | None = None
    """held-out triplets of `hotplate speech preferences`: how far chosen endings are ahead of rejected ones"""
    base: str | None = None
    """name of the run that gains in margin are over; none = the first"""
    data: str | None = None
    """data set whose test split is scored"""
    run_device: str = "cpu"
    """where the language models run: cpu or cuda"""


def named(given: tuple[str, ...], what: str) -> dict[str, Path]:
    """NAME=PATH arguments. InputError for anything else, or a name that is there twice."""
    found: dict[str, Path] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not (name and equals and path) or name in found:
            raise InputError(f"{what} {each!r}: want NAME=PATH, every name once")
        found[name] = Path(path)
    return found


def compare_runs(runs: tuple[str, ...], encoder: UnitEncoder, config: CompareConfig) -> dict[str, Any]:
    """All measures of all runs, with the machine. InputError: other units than the encoder's, nothing to measure on."""
    models = {name: (path, open_model(path, encoder, config.run_device)) for name, path in named(runs, "run").items()}
    if not models:
        raise InputError("hotplate speech compare: want one or more NAME=RUN")
    results: dict[str, Any] = {
        "environment": environment(torch.device(config.run_device)),
        "units": {"fingerprint": encoder.description.fingerprint, "backend": encoder.description.backend},
        "left_out": [],
        "runs": {name: _facts(path, trained) for name, (path, trained) in models.items()},
    }
    for name, folder in named(config.pairs, "--pairs").items():
        encoded = encode_pairs(folder, encoder, config)
        results["left_out"] += encoded.left_out
        for run, (_, trained) in models.items():
            results["runs"][run]["pairs"][name] = score_pairs(Speaking(trained, None), encoded, total=False)
    if config.triplets is not None:
        found = {run: _margins(trained, Path(config.triplets), encoder) for run, (_, trained) in models.items()}
        base = next(iter(found)) if config.base is None else config.base
        if base not in found:
            raise InputError(f"--base {base!r}: want one of {', '.join(found)}")
        results["base"] = base
        for run, margins in found.items():
            results["runs"][run]["triplets"] = _preference(margins, found[base])
    if config.data is not None:
        dataset = Dataset.open(config.data, "header")
        for run, (_, trained) in models.items():
            trained.check_tokenizer(dataset)
            metrics = evaluate_split(
                trained.model, dataset, "test", window=trained.config.data.window, rows=ROWS, resets=True
            )
            results["runs"][run]["test_loss"] = metrics.loss
    return results


def _facts(path: Path, trained: Trained) -> dict[str, Any]:
    """Size, and the losses on the way: [tokens, nats]."""
    records = read_records(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else []
    return {
        "parameters": cost(trained.model.config, trained.config.data.window).parameters,
        "steps": trained.step,
        "start": trained.config.run.start is not None,
        "preference": trained.config.preference.pairs is not None,
        "first_loss": next((r["loss"] for r in records if "loss" in r), None),
        "validation": [[r["tokens"], r["validation_loss"]] for r in records if "validation_loss" in r],
        "reward_margin": [[r["step"], r["reward_margin"]] for r in records if "reward_margin" in r],
        "pairs": {},
    }


def _margins(trained: Trained, path: Path, encoder: UnitEncoder) -> np.ndarray:
    """float64 [triplets]: nats by which the chosen ending is likelier than the rejected one after the prompt."""
    tokenizer = UnitTokenizer(path, encoder.description)
    pairs = read_pairs(path, tokenizer)
    shared = not trained.model.config.recurrent
    window = max(trained.config.data.window, *(pair.size(shared) for pair in pairs))
    source = PairSource(pairs, rows=1, window=window, seed=0, eod=tokenizer.eod, shared=shared, where=str(path))
    scores = reference_scores(trained.model, source, ROWS).astype(np.float64)
    return scores[:, 0] - scores[:, 1]


def _preference(margins: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Accuracy and mean margin, and its gain over the base's with the standard error of the paired difference."""
    gain = margins - base
    return {
        **compare(margins.tolist(), [0.0] * len(margins)).to_dict(),
        "margin": float(margins.mean()),
        "margin_error": float(margins.std(ddof=1) / math.sqrt(len(margins))) if len(margins) > 1 else None,
        "gain": float(gain.mean()),
        "gain_error": float(gain.std(ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else None,
    }


def plot(results: dict[str, Any], path: Path) -> None:
    """Validation loss on the way, accuracies with their intervals, margins; one colour a run."""
    runs = results["runs"]
    colours = dict(zip(runs, [PALETTE[family][0] for family in FAMILIES] * len(runs), strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        losses, accuracies, margins = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 0.8])
        for name, facts in runs.items():
            if facts["validation"] and not facts["preference"]:
                losses.plot(*zip(*facts["validation"], strict=True), color=colours[name], label=name)
        losses.set(title="Validation loss, nats a unit", xlabel="units seen")
        losses.legend()
        kinds = list(next(iter(runs.values()))["pairs"])
        for place, (name, facts) in enumerate(runs.items()):
            at = np.arange(len(kinds)) + (place - (len(runs) - 1) / 2) * 0.8 / len(runs)
            totals = [list(facts["pairs"][kind].values())[-1] for kind in kinds]
            middle = np.array([total["accuracy"] for total in totals])
            reach = np.abs(np.array([[total["low"], total["high"]] for total in totals]).T.reshape(2, -1) - middle)
            accuracies.errorbar(at, middle, yerr=reach, fmt="o", color=colours[name], label=name, capsize=2)
            if "triplets" in facts:
                found = facts["triplets"]
                margins.errorbar(place, found["margin"], yerr=found["margin_error"], fmt="o", color=colours[name])
        accuracies.axhline(0.5, color=PALETTE["muted"][0], linewidth=0.8, linestyle=":")
        accuracies.set(title="Pairs in the right order (chance: dotted)", xticks=range(len(kinds)), xticklabels=kinds)
        accuracies.set_xlim(-0.5, max(0.5, len(kinds) - 0.5))
        accuracies.legend()
        margins.set(title="Margin of chosen endings, nats", xticks=range(len(runs)), xticklabels=list(runs))
        margins.set_xlim(-0.5, len(runs) - 0.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
