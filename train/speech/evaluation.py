"""`hotplate speech evaluate`: pairs of audio files under a trained model."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotplate.train.errors import InputError
from hotplate.train.speech.audio import read_audio
from hotplate.train.speech.encoder import UnitEncoder
from hotplate.train.speech.layouts import Layout, read_pairs
from hotplate.train.speech.likelihood import compare, unit_scores
from hotplate.train.trained import load_trained


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which pairs, and how they are scored."""

    pairs: str
    """folder of wav files"""
    layout: Layout = "storycloze"
    """how the files are named: sblimp, swuggy, storycloze or salmon"""
    total: bool = False
    """compare summed log-probabilities instead of means over units"""
    resample: bool = False
    """convert files of another sample rate; without it they are errors"""
    limit: int | None = None
    """pairs of each category; none = all"""
    run_device: str = "cpu"
    """where the language model runs: cpu or cuda"""


def evaluate_pairs(run: Path, encoder: UnitEncoder, config: PairsConfig) -> dict[str, Any]:
    """Accuracy of each category and of all pairs. InputError: other units than the model's, unreadable audio."""
    trained = load_trained(run, torch.device(config.run_device))
    if trained.tokenizer != encoder.description.fingerprint:
        raise InputError(
            f"{run}: trained on units or tokens {trained.tokenizer[:16]}, the encoder makes "
            f"{encoder.description.fingerprint[:16]}; use the --backend, --codebook and --model of its data"
        )
    kept = []
    seen: dict[str, int] = defaultdict(int)
    for pair in read_pairs(Path(config.pairs), config.layout):
        seen[pair.category] += 1
        if config.limit is None or seen[pair.category] <= config.limit:
            kept.append(pair)
    right = unit_scores(trained.model, [_units(encoder, pair.right, config) for pair in kept], total=config.total)
    wrong = unit_scores(trained.model, [_units(encoder, pair.wrong, config) for pair in kept], total=config.total)
    members: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(kept):
        members[pair.category].append(number)
    if len(members) > 1:
        members["all pairs"] = list(range(len(kept)))
    categories = {
        name: compare([right[i] for i in numbers], [wrong[i] for i in numbers]).to_dict()
        for name, numbers in members.items()
    }
    facts = {"run": str(run), "step": trained.step, "pairs": config.pairs, "layout": config.layout}
    return {**facts, "fingerprint": trained.tokenizer, "summed": config.total, "categories": categories}


def _units(encoder: UnitEncoder, path: Path, config: PairsConfig) -> np.ndarray:
    try:
        return encoder.encode_one(read_audio(path, encoder.features.sample_rate, config.resample)).units
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
