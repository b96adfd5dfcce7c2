"""`hotplate evaluate RUN [flags]`: score a trained model on held-out splits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hotplate.train import console, settings
from hotplate.train.data.prepare import open_data
from hotplate.train.errors import InputError
from hotplate.train.evaluate.perplexity import evaluate_split
from hotplate.train.trained import load_trained


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to score, and how much context each target gets."""

    split: tuple[str, ...] = ("test",)
    """splits of the data set; `all` = every split"""
    data: str | None = None
    """another data set with the same tokeniser; none = the one it was trained on"""
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
    """stop after this many targets per split"""
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
    trained = load_trained(Path(run), torch.device(config.device))
    source = config.data or trained.config.data.source
    dataset = open_data(source, vocab=trained.config.model.vocab, verify=trained.config.data.verify)
    trained.check_tokenizer(dataset)
    data = trained.config.data
    resets = (data.mode == "packed" or data.document_resets) if config.documents is None else config.documents
    splits = dataset.splits if "all" in config.split else config.split
    results = {}
    for split in splits:
        try:
            found = evaluate_split(
                trained.model,
                dataset,
                split,
                window=config.window or data.window,
                last_n=config.last_n,
                rows=config.rows,
                resets=resets,
                carry=config.carry,
                limit=config.limit,
            )
        except ValueError as error:
            raise InputError(f"hotplate evaluate: {error}") from error
        results[split] = found.to_dict()
    columns = [
        "split",
        "targets",
        "loss",
        "bits_per_byte",
        "normalised_perplexity",
        "normalised_perplexity_characters",
    ]
    rows = [
        [
            split,
            *(f"{result[name]:,.5g}" if name != "targets" else f"{result[name]:,}" for name in columns[1:]),
        ]
        for split, result in results.items()
    ]
    console.table(f"{run}, step {trained.step}, {source}", columns, rows)
    if config.json:
        text = json.dumps({"run": run, "step": trained.step, "data": source, "splits": results}, indent=1)
        Path(config.json).write_text(text + "\n", encoding="utf-8")
    return 0
