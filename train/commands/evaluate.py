"""`hotplate evaluate RUN [flags]`: score a trained model on held-out splits, by position, and on tasks."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hotplate.train import console, settings
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.prepare import open_data
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError
from hotplate.train.evaluate.by_position import PositionLosses, plot, position_losses
from hotplate.train.evaluate.perplexity import evaluate_split
from hotplate.train.trained import Trained, load_trained

COLUMNS = ("targets", "loss", "bits_per_byte", "normalised_perplexity", "normalised_perplexity_characters")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score, and how much context each target gets."""

    split: tuple[str, ...] = ("test",)
    """splits, in every data set that has them; `all` = every split"""
    data: tuple[str, ...] = ()
    """data sets cut with the model's tokeniser; none = the one it was trained on"""
    window: int | None = None
    """tokens that the model sees at once; none = the training window"""
    last_n: int | None = None
    """score only the last n targets of each window (all of the first); none = the window, no overlap"""
    rows: int = 16
    """rows per batch; recurrent models read this many parallel streams"""
    documents: bool | None = None
    """nothing is seen across a document's start; none = as in training"""
    carry: bool | None = None
    """carry recurrent state from window to window; none = yes for recurrent models"""
    limit: int | None = None
    """stop after this many targets per split; with --tasks: documents per task"""
    by_position: str | None = None
    """instead, loss by position in document and window: PATH.json and PATH.png, carried state against none"""
    tasks: tuple[str, ...] = ()
    """instead, tasks of lm-eval-harness: names, or .yaml files of your own"""
    json: str | None = None
    """also write the results to this file"""
    device: str = "cpu"
    """cpu or cuda"""


def main(arguments: Sequence[str]) -> int:
    """`hotplate evaluate RUN --split all --last-n 128`."""
    run, flags = settings.split_preset(arguments, "")
    config = settings.parse(EvaluateConfig(), flags, "hotplate evaluate RUN")
    if not run:
        raise InputError("hotplate evaluate: want a run folder first; e.g. hotplate evaluate runs/demo-...")
    if config.tasks and config.by_position:
        raise InputError("hotplate evaluate: --tasks and --by-position are separate evaluations; give one")
    trained = load_trained(Path(run), torch.device(config.device))
    names = config.data or (trained.config.data.source,)
    datasets = [open_data(name, trained.config.model.vocab, trained.config.data.verify) for name in names]
    for dataset in datasets:
        trained.check_tokenizer(dataset)
    title = f"{run}, step {trained.step}"
    try:
        if config.tasks:
            found = _tasks(config, trained, datasets[0], title)
        elif config.by_position:
            found = _by_position(config, trained, datasets, title)
        else:
            found = _splits(config, trained, datasets, names, title)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"hotplate evaluate: {error}") from error
    if config.json:
        text = json.dumps({"run": run, "step": trained.step, **found}, indent=1)
        Path(config.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _splits(
    config: EvaluateConfig, trained: Trained, datasets: list[Dataset], names: Sequence[str], title: str
) -> dict[str, Any]:
    """Normalised perplexity of every split: the data sets with their splits."""
    sets: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, (dataset, split) in _chosen(config, datasets, names):
        metrics = evaluate_split(
            trained.model,
            dataset,
            split,
            window=_window(config, trained),
            last_n=config.last_n,
            rows=config.rows,
            resets=_resets(config, trained),
            carry=config.carry,
            limit=config.limit,
        )
        sets[name][split] = metrics.to_dict()
    rows = [
        [name, split, f"{result['targets']:,}", *(f"{result[column]:,.5g}" for column in COLUMNS[1:])]
        for name, splits in sets.items()
        for split, result in splits.items()
    ]
    console.table(title, ["data", "split", *COLUMNS], rows)
    described = [
        {"data": name, "fingerprint": dataset.fingerprint, "splits": sets[name]}
        for name, dataset in zip(names, datasets, strict=True)
    ]
    context = {"window": _window(config, trained), "last_n": config.last_n, "resets": _resets(config, trained)}
    return {**context, "sets": described}


def _by_position(config: EvaluateConfig, trained: Trained, datasets: list[Dataset], title: str) -> dict[str, Any]:
    """Curves into a JSON file and a figure, and what carried state is worth beyond the window, in lines."""
    if config.last_n not in (None, _window(config, trained)) or config.carry is not None:
        raise InputError(
            "--by-position compares carried state with none over windows without overlap: "
            "leave out --last-n and --carry"
        )
    losses = [
        position_losses(
            trained.model,
            dataset,
            split,
            window=_window(config, trained),
            rows=config.rows,
            resets=_resets(config, trained),
            limit=config.limit,
        )
        for _, (dataset, split) in _chosen(config, datasets, [str(dataset.folder) for dataset in datasets])
    ]
    found = {"positions": [each.to_dict() for each in losses]}
    stem = str(config.by_position)
    Path(f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot(losses, Path(f"{stem}.png"), title)
    for each in losses:
        console.say(f"{each.split}: {_worth(each)}")
    console.say(f"curves      {stem}.json\nfigure      {stem}.png")
    return found


def _worth(losses: PositionLosses) -> str:
    beyond = losses.beyond
    if beyond is None:
        return f"no carried state to compare beyond {losses.window:,} tokens of a document"
    error = "" if beyond.standard_error is None else f" ± {beyond.standard_error:.4f}"
    return (
        f"beyond {losses.window:,} tokens of a document: {beyond.carried:.4f} nats per token with state carried on, "
        f"{beyond.window:.4f} with the window alone: {beyond.difference:+.4f}{error} "
        f"({beyond.targets:,} targets of {beyond.documents:,} documents)"
    )


def _tasks(config: EvaluateConfig, trained: Trained, dataset: Dataset, title: str) -> dict[str, Any]:
    """The harness's results, as it gives them."""
    try:
        from hotplate.train.evaluate.harness import run_tasks
    except ImportError as error:
        raise InputError(f"--tasks needs lm-eval: pip install 'hotplate[lm-eval]' ({error})") from error
    window = _window(config, trained)
    if not isinstance(dataset.tokenizer, Tokenizer):
        raise InputError(f"--tasks: want a model of text, {dataset.folder} holds speech units")
    results = run_tasks(trained.model, dataset.tokenizer, config.tasks, window, config.rows, config.limit)
    rows = [
        [task, measure.replace(",none", ""), f"{value:.5g}" if isinstance(value, float) else str(value)]
        for task, measures in results.items()
        for measure, value in measures.items()
        if measure != "alias"
    ]
    console.table(title, ["task", "measure", "value"], rows)
    return {"tasks": results}


def _chosen(
    config: EvaluateConfig, datasets: list[Dataset], names: Sequence[str]
) -> Iterable[tuple[str, tuple[Dataset, str]]]:
    """(name of the data set, (data set, split)) for every wanted split. InputError for a split that none has."""
    known = {split for dataset in datasets for split in dataset.splits}
    for split in config.split:
        if split != "all" and split not in known:
            raise InputError(f"{', '.join(names)}: no split {split!r}; there are {', '.join(sorted(known))}")
    for name, dataset in zip(names, datasets, strict=True):
        for split in dataset.splits:
            if "all" in config.split or split in config.split:
                yield name, (dataset, split)


def _window(config: EvaluateConfig, trained: Trained) -> int:
    return config.window or trained.config.data.window


def _resets(config: EvaluateConfig, trained: Trained) -> bool:
    data = trained.config.data
    return (data.mode == "packed" or data.document_resets) if config.documents is None else config.documents
