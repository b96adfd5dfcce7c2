"""The end of a run: final evaluation, a sample, the loss curve, and a table of what it cost."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hotplate.model.generate import generate
from hotplate.model.lm import LanguageModel
from hotplate.train import console
from hotplate.train.budget import Goodput, Plan
from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset, unigram_nats
from hotplate.train.evaluate.perplexity import Metrics, evaluate_split
from hotplate.train.ranks import Ranks
from hotplate.train.sinks import read_records

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.8, 50


def finish(
    model: LanguageModel | None,
    dataset: Dataset,
    config: TrainConfig,
    plan: Plan,
    ranks: Ranks,
    goodput: Goodput,
    folder: Path,
    execution: Mapping[str, Any],
) -> None:
    """Evaluate the splits the config names, sample, plot, and write summary.json, `execution` (how blocks were run in
    the end) in it; the main rank alone does it, and it alone has the `model`."""
    goodput.switch("evaluate")
    if model is None:
        return
    data, evaluation = config.data, config.evaluation
    found: dict[str, Metrics] = {}
    unigram: dict[str, float] = {}
    for split in evaluation.splits:
        resets = data.mode == "packed" or data.document_resets
        found[split] = evaluate_split(model, dataset, split, window=data.window, rows=evaluation.rows, resets=resets)
        unigram[split] = unigram_nats(dataset.split("train"), dataset.split(split))
    goodput.switch("sample")
    text = sample(model, dataset, evaluation.sample_tokens, config.seed) if evaluation.sample_tokens else ""
    (folder / "sample.txt").write_text(text + "\n", encoding="utf-8")
    records = read_records(folder / "metrics.jsonl")
    curve = folder / "loss.png"
    title = f"{folder.name}: {config.model.mixer.kind}, {plan.tokens:,} tokens"
    baseline = unigram.get("validation", next(iter(unigram.values()), math.nan))
    console.plot_loss(records, curve, baseline, title)
    goodput.switch("end")
    summary = {**_summary(config, plan, ranks, goodput, found, unigram), "execution": dict(execution)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _show(summary, found, unigram, text)
    console.say(f"loss curve  {curve}\nsummary     {folder / 'summary.json'}")


def sample(model: LanguageModel, dataset: Dataset, tokens: int, seed: int) -> str:
    """Text that the model continues from the start of a document."""
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    start = torch.tensor([[dataset.eod]], device=device)
    drawn = generate(model, start, tokens, temperature=SAMPLE_TEMPERATURE, top_k=SAMPLE_TOP_K, generator=generator)
    ids = drawn[0].tolist()
    return dataset.tokenizer.decode(ids[: ids.index(dataset.eod)] if dataset.eod in ids else ids)


def _summary(
    config: TrainConfig,
    plan: Plan,
    ranks: Ranks,
    goodput: Goodput,
    found: dict[str, Metrics],
    unigram: dict[str, float],
) -> dict[str, Any]:
    paid = goodput.snapshot()
    return {
        "steps": plan.steps,
        "tokens": plan.tokens,
        "protocol_hours": plan.hours(plan.tokens),
        "paid_hours": sum(paid.values()) * ranks.world / 3600,
        "paid_seconds": paid,
        "down_seconds": goodput.down,
        "goodput": paid.get("train", 0.0) / sum(paid.values()),
        "accelerators": ranks.world,
        "budget": config.budget,
        "splits": {
            name: {
                **metrics.to_dict(),
                "unigram_loss": unigram[name],
                "unigram_normalised_perplexity": _unigram(metrics, unigram[name]),
            }
            for name, metrics in found.items()
        },
    }


def _unigram(metrics: Metrics, nats: float) -> float:
    """Normalised perplexity per byte of a unigram model on the same targets."""
    return math.exp(nats * metrics.targets / metrics.bytes)


def _show(summary: dict[str, Any], found: dict[str, Metrics], unigram: dict[str, float], text: str) -> None:
    rows = [
        [
            name,
            f"{metrics.targets:,}",
            f"{metrics.loss:.3f}",
            f"{metrics.perplexity:.1f}",
            f"{metrics.bits_per_byte:.3f}",
            f"{metrics.normalised_perplexity:.4f}",
            f"{_unigram(metrics, unigram[name]):.4f}",
            f"{metrics.normalised_perplexity_characters:.4f}",
            f"{metrics.top1 / metrics.targets:.1%}",
            f"{metrics.top10 / metrics.targets:.1%}",
        ]
        for name, metrics in found.items()
    ]
    columns = ["split", "targets", "loss", "ppl", "bit/byte", "nppl/byte", "unigram", "nppl/char", "top-1", "top-10"]
    console.table("held-out text (nppl: normalised perplexity; unigram: its value for a unigram model)", columns, rows)
    paid = summary["paid_seconds"]
    protocol = summary["protocol_hours"]
    spent = [["protocol", "" if protocol is None else console.duration(protocol * 3600), ""]]
    spent += [["paid", console.duration(sum(paid.values())), ""]]
    spent += [
        [f"  {name}", console.duration(value), f"{value / sum(paid.values()):.1%}"] for name, value in paid.items()
    ]
    if summary["down_seconds"] > 0:
        spent += [["down (not paid)", console.duration(summary["down_seconds"]), ""]]
    console.table(
        f"budget {summary['budget']}: {summary['tokens']:,} tokens in {summary['steps']:,} steps",
        ["hours", "time", "share"],
        spent,
    )
    if text:
        console.say(f"sample\n{text}\n")
