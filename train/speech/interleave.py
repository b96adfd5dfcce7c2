"""Documents that switch between text and speech at word boundaries, drawn anew and reproducibly in every epoch.

A document of n words whose times and units are known. A word is text or speech; a stretch of equal words is a segment.
Source: Maimon et al. 2025 (SIMS), section 3; Nguyen et al. 2024 (SpiritLM).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np

from hotplate.train.data.mixed import MixedTokenizer
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


class Spoken(NamedTuple):
    """A document of n words as text and as units. The units of words i..j are units[first[i]:last[j]]."""

    name: str
    units: np.ndarray  # uint16 [U]
    words: list[np.ndarray]  # n times int32: text ids of each word, with the space before it
    first: np.ndarray  # int64 [n]
    last: np.ndarray  # int64 [n]


def align(words: Sequence[Word], durations: np.ndarray, unit_seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] twice: the first unit of each word, and the one after its last.

    The units of a stretch are those that end between its first word's start and its last word's end, both included.
    """
    ends = np.cumsum(durations, dtype=np.float64) * unit_seconds
    first = np.searchsorted(ends, [word.start for word in words], side="left")
    return first, np.searchsorted(ends, [word.end for word in words], side="right")


def interleaved(document: Spoken, speech: np.ndarray, tokenizer: MixedTokenizer) -> np.ndarray:
    """int64 ids of the document, without D; `speech` bool [n] says which words are spoken.

    A marker opens it and every switch; a spoken stretch that is too short for a unit is left out.
    """
    if len(document.words) != len(speech):
        raise ValueError(f"interleaved: want one choice per word, got {len(document.words)} and {len(speech)}")
    parts: list[np.ndarray] = []
    spoken_before: bool | None = None
    for spoken, group in groupby(range(len(speech)), key=lambda i: bool(speech[i])):
        places = list(group)
        if spoken:
            units = document.units[document.first[places[0]] : document.last[places[-1]]]
            content = [units.astype(np.int64) + tokenizer.text_ids] if len(units) else []
        else:
            content = [document.words[i].astype(np.int64) for i in places]
        if not content:
            continue
        if spoken != spoken_before:
            parts.append(np.array([tokenizer.marker("speech" if spoken else "text")]))
        parts += content
        spoken_before = spoken
    return np.concatenate([np.zeros(0, np.int64), *parts])
