"""Documents that switch between text and speech at word boundaries, drawn anew and reproducibly in every epoch.

A document of n words whose times and units are known. A word is text or speech; a stretch of equal words is a segment.
Source: Maimon et al. 2025 (SIMS), section 3; Nguyen et al. 2024 (SpiritLM).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal
from zlib import crc32

import numpy as np

from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.speech.voices import Word

Method = Literal["random", "span", "poisson"]


@dataclass(frozen=True, kw_only=True)
class InterleaveConfig:
    """Which words are speech."""

    method: Method = "poisson"
    """random: each word by itself; span: once speech begins it lasts `span` words; poisson: a share of the words in
    spans of Poisson length that never touch"""
    share: float = 0.3
    """random, span: probability that a word is, or begins, speech; poisson: the share of speech words"""
    span: int = 10
    """words of a span; poisson: their mean"""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.span < 1:
            raise ValueError(f"interleave: want 0 <= share <= 1 and span >= 1, got {self.share} and {self.span}")


@dataclass(frozen=True)
class Segment:
    """Either text or units."""

    text: str = ""
    units: np.ndarray | None = None


@dataclass(frozen=True)
class MixedVocabulary:
    """Ids of both: the text tokenizer's V first, then K units, then the two markers that open a segment."""

    tokenizer: Tokenizer
    units: int

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab + self.units + 2

    @property
    def speech(self) -> int:
        return self.tokenizer.vocab + self.units

    @property
    def text(self) -> int:
        return self.speech + 1

    def encode(self, segments: Sequence[Segment]) -> np.ndarray:
        """int64 ids of a document, without D: a marker at the start and at every switch."""
        parts: list[np.ndarray] = []
        for segment in segments:
            if segment.units is None:
                parts += [np.array([self.text]), self.tokenizer.encode(segment.text)]
            else:
                parts += [np.array([self.speech]), segment.units.astype(np.int64) + self.tokenizer.vocab]
        return np.concatenate(parts).astype(np.int64)


def speech_words(count: int, config: InterleaveConfig, name: str, epoch: int) -> np.ndarray:
    """bool [count]: the words of document `name` that are speech in `epoch`; the same for the same arguments."""
    random = np.random.default_rng([config.seed, epoch, crc32(name.encode())])
    if config.method == "random":
        return random.random(count) < config.share
    if config.method == "span":
        chosen = np.zeros(count, bool)
        word = 0
        while word < count:
            drawn = random.random() < config.share
            length = config.span if drawn else 1
            chosen[word : word + length] = drawn
            word += length
        return chosen
    return _poisson(count, config, random)


def _poisson(count: int, config: InterleaveConfig, random: np.random.Generator) -> np.ndarray:
    """Spans from uniform starts until the share is reached; one that would overlap or touch another is rejected, the
    last one is cut to the number of words still wanted.
    """
    chosen, barred = np.zeros(count, bool), np.zeros(count + 1, bool)
    wanted = int(np.ceil(config.share * count))
    while wanted > 0 and not barred[:count].all():
        start = int(random.choice(np.flatnonzero(~barred[:count])))
        stop = min(count, start + min(wanted, max(1, int(random.poisson(config.span)))))
        if barred[start:stop].any() or chosen[stop : stop + 1].any():
            barred[start] = True  # no span fits here with this draw: do not ask the same word for ever
            continue
        chosen[start:stop] = True
        barred[max(0, start - 1) : stop + 1] = True
        wanted -= stop - start
    return chosen


def segments(
    words: Sequence[Word], units: np.ndarray, durations: np.ndarray, unit_seconds: float, speech: np.ndarray
) -> list[Segment]:
    """The document's segments, in order. `speech` bool [n] says which words are spoken.

    The units of a spoken stretch are those that end between its first word's start and its last word's end, both
    included. ValueError where counts differ.
    """
    if len(words) != len(speech) or len(units) != len(durations):
        raise ValueError(
            f"segments: want one choice per word and one duration per unit, got {len(words)} words, {len(speech)} "
            f"choices, {len(units)} units, {len(durations)} durations"
        )
    ends = np.cumsum(durations, dtype=np.float64) * unit_seconds
    made = []
    for spoken, group in groupby(range(len(words)), key=lambda i: bool(speech[i])):
        places = list(group)
        if not spoken:
            made.append(Segment(text="".join(words[i].word for i in places)))
            continue
        first = bisect_left(ends, words[places[0]].start)
        last = bisect_right(ends, words[places[-1]].end)
        if last > first:  # words shorter than a unit have none
            made.append(Segment(units=units[first:last]))
    return made
