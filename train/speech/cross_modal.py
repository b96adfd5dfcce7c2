"""Which of two endings follows a prompt, where each may be spoken or written.

A folder (its sub-folders are categories) holds NAME_mutual, NAME_correct and NAME_incorrect, each as .wav, .txt or
both. The score of an ending is the mean log-probability of its ids and the end, after the prompt: prompts are the same
on both sides, and neither they nor the markers count.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hotplate.train.data.mixed import MixedTokenizer, Modality, Segment
from hotplate.train.errors import InputError
from hotplate.train.speech.encoder import UnitEncoder
from hotplate.train.speech.evaluation import by_category, open_speaking, units_of
from hotplate.train.speech.likelihood import sequence_scores

SIDES = ("mutual", "correct", "incorrect")
SUFFIXES = {"speech": ".wav", "text": ".txt"}


@dataclass(frozen=True, kw_only=True)
class CrossConfig:
    """Which folder, and what is spoken."""

    pairs: str
    """folder of NAME_mutual, NAME_correct and NAME_incorrect"""
    prompt: Modality = "speech"
    ending: Modality = "speech"
    total: bool = False
    """compare summed log-probabilities instead of means"""
    restrict: bool = True
    """probabilities among the ids of the ending's modality"""
    resample: bool = False
    """convert files of another sample rate; without it they are errors"""
    run_device: str = "cpu"
    """where the language model runs: cpu or cuda"""


class Story(NamedTuple):
    category: str
    mutual: Path
    correct: Path
    incorrect: Path


def read_stories(folder: Path, prompt: Modality, ending: Modality) -> list[Story]:
    """All stories of a folder. InputError: none there, or a side of one missing."""
    found = []
    suffix = SUFFIXES[prompt]
    for mutual in sorted(folder.rglob(f"*_mutual{suffix}")):
        stem = mutual.name.removesuffix(f"_mutual{suffix}")
        ends = [mutual.with_name(f"{stem}_{side}{SUFFIXES[ending]}") for side in SIDES[1:]]
        if missing := [end.name for end in ends if not end.is_file()]:
            raise InputError(f"{mutual}: without {', '.join(missing)} beside it")
        category = "all" if mutual.parent == folder else mutual.parent.relative_to(folder).as_posix()
        found.append(Story(category, mutual, *ends))
    if not found:
        raise InputError(f"{folder}: no *_mutual{suffix} files there")
    return found


def evaluate_cross(run: Path, encoder: UnitEncoder, config: CrossConfig) -> dict[str, Any]:
    """Accuracy of each category and of all. A story with a bad file is left out; InputError: other units, none left."""
    speaking = open_speaking(run, encoder, config.run_device)
    if (tokenizer := speaking.mixed) is None:
        raise InputError(f"{run}: a model of units alone; want one of text and units, or `hotplate speech evaluate`")
    allowed = speaking.allowed(config.ending) if config.restrict else None
    categories: list[str] = []
    scores: list[list[float]] = [[], []]
    left_out: list[str] = []
    for story in read_stories(Path(config.pairs), config.prompt, config.ending):
        try:
            prompt = _segment(story.mutual, config.prompt, encoder, config.resample)
            ends = [_segment(path, config.ending, encoder, config.resample) for path in story[2:]]
        except InputError as error:
            left_out.append(str(error))
            continue
        categories.append(story.category)
        for side, end in zip(scores, ends, strict=True):
            given, ids = _ids(tokenizer, prompt, end, config.ending)
            side += sequence_scores(speaking.trained.model, [ids], given=given, allowed=allowed, total=config.total)
    if not categories:
        raise InputError(f"{config.pairs}: no story can be used; the first: {left_out[0]}")
    facts: dict[str, Any] = {"run": str(run), "pairs": config.pairs, "prompt": config.prompt, "ending": config.ending}
    facts |= {"left_out": left_out}
    return {**facts, "categories": by_category(categories, scores[0], scores[1])}


def _ids(tokenizer: MixedTokenizer, prompt: Segment, end: Segment, ending: Modality) -> tuple[int, np.ndarray]:
    """How many ids are given, and all of them: [D, prompt, (marker), ending, D]."""
    start = tokenizer.turn([tokenizer.eod, *tokenizer.join([prompt]).tolist()], ending)
    return len(start), np.array([*start, *tokenizer.segment(end).tolist(), tokenizer.eod], np.int64)


def _segment(path: Path, modality: Modality, encoder: UnitEncoder, resample: bool) -> Segment:
    if modality == "speech":
        return Segment(units=units_of(encoder, path, resample))
    try:
        text = " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the text: {error}") from error
    if not text:
        raise InputError(f"{path}: no text in it")
    return Segment(text=text if path.stem.endswith("_mutual") else f" {text}")
