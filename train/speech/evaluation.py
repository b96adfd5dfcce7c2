"""`hotplate speech evaluate`: pairs of audio files under a trained model."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hotplate.train.data.dataset import Dataset
from hotplate.train.data.mixed import MixedTokenizer, Modality, Segment
from hotplate.train.data.units import BOUNDARY, FIRST_UNIT
from hotplate.train.errors import InputError
from hotplate.train.speech.audio import read_audio
from hotplate.train.speech.encoder import UnitEncoder
from hotplate.train.speech.layouts import Layout, read_pairs
from hotplate.train.speech.likelihood import compare, sequence_scores
from hotplate.train.trained import Trained, load_trained


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How folders of pairs are read."""

    layout: Layout = "storycloze"
    """how the files are named: sblimp, swuggy, storycloze or salmon"""
    resample: bool = False
    """convert files of another sample rate; without it they are errors"""
    limit: int | None = None
    """pairs of each category; none = all"""


@dataclass(frozen=True, kw_only=True)
class PairsConfig(ReadConfig):
    """Which pairs, and how they are scored."""

    pairs: str
    """folder of wav files"""
    total: bool = False
    """compare summed log-probabilities instead of means over units"""
    only: Modality | None = None
    """models of text and units: probabilities among the ids of one of them"""
    run_device: str = "cpu"
    """where the language model runs: cpu or cuda"""


@dataclass(frozen=True)
class EncodedPairs:
    """Units of both sides, pair by pair; `left_out` says which pairs could not be read, and why."""

    categories: list[str]
    right: list[np.ndarray]
    wrong: list[np.ndarray]
    left_out: list[str]


@dataclass(frozen=True)
class Speaking:
    """A model, and how it is given units: the ids of a sequence begin with `given` that are not scored."""

    trained: Trained
    mixed: MixedTokenizer | None  # of a model of text and units

    @property
    def given(self) -> int:
        return 1 if self.mixed is None else 2

    def sequence(self, units: np.ndarray) -> np.ndarray:
        """int64 ids of a whole utterance, its boundaries and marker included."""
        if self.mixed is None:
            return np.concatenate([[BOUNDARY], units.astype(np.int64) + FIRST_UNIT, [BOUNDARY]])
        return np.concatenate([[self.mixed.eod], self.mixed.join([Segment(units=units)]), [self.mixed.eod]])

    def allowed(self, modality: Modality | None) -> Tensor | None:
        """bool [V]: the ids that probabilities are among; None: all."""
        if modality is None:
            return None
        if self.mixed is None:
            raise InputError(f"--only {modality}: the model has no ids of text; leave it out")
        return torch.from_numpy(self.mixed.allowed(modality))


def open_speaking(run: Path, encoder: UnitEncoder, device: str) -> Speaking:
    """A model of the encoder's units, alone or with text. InputError for one of other units."""
    trained = load_trained(run, torch.device(device))
    if trained.tokenizer != encoder.description.fingerprint and Path(trained.config.data.source).is_dir():
        dataset = Dataset.open(trained.config.data.source, "header")
        if isinstance(tokenizer := dataset.tokenizer, MixedTokenizer) and tokenizer.fingerprint == trained.tokenizer:
            encoder.description.check_same(tokenizer.description, str(run))
            return Speaking(trained, tokenizer)
    return Speaking(open_model(run, encoder, device), None)


def open_model(run: Path, encoder: UnitEncoder, device: str) -> Trained:
    """A model of the encoder's units. InputError for one that was trained on others."""
    trained = load_trained(run, torch.device(device))
    if trained.tokenizer != encoder.description.fingerprint:
        raise InputError(
            f"{run}: trained on units or tokens {trained.tokenizer[:16]}, the encoder makes "
            f"{encoder.description.fingerprint[:16]}; use the --backend, --codebook and --model of its data"
        )
    return trained


def encode_pairs(folder: Path, encoder: UnitEncoder, config: ReadConfig) -> EncodedPairs:
    """Units of the pairs of a folder. A pair with a bad file is left out; InputError when no pair is left."""
    encoded = EncodedPairs([], [], [], [])
    seen: dict[str, int] = defaultdict(int)
    for pair in read_pairs(folder, config.layout):
        seen[pair.category] += 1
        if config.limit is not None and seen[pair.category] > config.limit:
            continue
        try:
            right, wrong = (units_of(encoder, path, config.resample) for path in (pair.right, pair.wrong))
        except InputError as error:
            encoded.left_out.append(str(error))
            continue
        encoded.categories.append(pair.category)
        encoded.right.append(right)
        encoded.wrong.append(wrong)
    if not encoded.categories:
        raise InputError(f"{folder}: no pair can be used; the first: {encoded.left_out[0]}")
    return encoded


def score_pairs(
    speaking: Speaking, encoded: EncodedPairs, total: bool, only: Modality | None = None
) -> dict[str, dict[str, Any]]:
    """Accuracy of each category, and of all pairs where there are several."""
    how: dict[str, Any] = {"given": speaking.given, "allowed": speaking.allowed(only), "total": total}
    right, wrong = (
        sequence_scores(speaking.trained.model, [speaking.sequence(units) for units in side], **how)
        for side in (encoded.right, encoded.wrong)
    )
    return by_category(encoded.categories, right, wrong)


def by_category(categories: list[str], right: list[float], wrong: list[float]) -> dict[str, dict[str, Any]]:
    """`compare` of the scores of each category, and of all where there are several."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, category in enumerate(categories):
        members[category].append(number)
    if len(members) > 1:
        members["all pairs"] = list(range(len(categories)))
    return {
        name: compare([right[i] for i in numbers], [wrong[i] for i in numbers]).to_dict()
        for name, numbers in members.items()
    }


def evaluate_pairs(run: Path, encoder: UnitEncoder, config: PairsConfig) -> dict[str, Any]:
    """Accuracy of each category and of all pairs. InputError: other units than the model's, no usable pair."""
    speaking = open_speaking(run, encoder, config.run_device)
    trained = speaking.trained
    encoded = encode_pairs(Path(config.pairs), encoder, config)
    facts = {"run": str(run), "step": trained.step, "pairs": config.pairs, "layout": config.layout}
    facts |= {"fingerprint": trained.tokenizer, "summed": config.total, "left_out": encoded.left_out}
    return {**facts, "categories": score_pairs(speaking, encoded, config.total, config.only)}


def units_of(encoder: UnitEncoder, path: Path, resample: bool) -> np.ndarray:
    """Units of a file; an InputError names it."""
    try:
        return encoder.encode_one(read_audio(path, encoder.features.sample_rate, resample)).units
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
