"""Synthetic speech out of text: stories, preference triplets and pairs for the measures, from several voices.

Every choice (passage, voice, wrong ending) follows from the seed, so a folder can be made again, and a call goes on
where an earlier one stopped.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hotplate.train.errors import InputError
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.repetition import auto_bleu, text_tokens
from hotplate.train.speech.texts import chosen
from hotplate.train.speech.voices import SAMPLE_RATE, available, speak

MOST_REPETITION = 0.3  # SpokenSwag keeps rows whose text has a smaller auto-BLEU-2
PREFERENCES = "preferences.jsonl"

Kind = Literal["stories", "swag", "topic", "order"]


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """What is spoken, and by whom."""

    kind: Kind = "stories"
    """stories: passages with word times; swag: prompt, chosen and rejected ending apart; topic: the true ending against
    one of another passage; order: a sentence against the same with two words exchanged"""
    count: int = 100
    """passages, triplets or pairs"""
    length: int = 2
    """sentences of a story; of the others the last one is the ending"""
    words: tuple[int, int] = (4, 16)
    """fewest and most words of a sentence"""
    voices: tuple[str, ...] = ()
    """who speaks, by turns; all parts of a pair have one voice; none = flite:slt, flite:rms, flite:awb, espeak:en-us,
    hibari and piper:joe, as far as they are here"""
    test: bool = False
    """use the held-out fifth of the sentences instead of the others"""
    seed: int = 0
    workers: int = 2
    """utterances synthesised side by side"""

    def __post_init__(self) -> None:
        if self.count < 1 or self.length < (1 if self.kind in ("stories", "order") else 2):
            raise ValueError("want count >= 1, and length >= 2 where the last sentence is the ending")


@dataclass(frozen=True)
class Spoken:
    """One file to make."""

    name: str  # without suffix, inside the folder
    text: str
    voice: str


def synthesise(
    source: str, out: Path, config: SynthesisConfig, progress: Callable[[int], None] = lambda n: None
) -> int:
    """Make the folder's wav and JSON files that are not there yet; the number of files in all.

    InputError when a voice cannot speak here or the text is too short. Each JSON file says who spoke.
    """
    config = replace(config, voices=available(config.voices))
    build = {"stories": _stories, "swag": _swag, "topic": _topic, "order": _order}[config.kind]
    wanted = build(source, out, config)
    out.mkdir(parents=True, exist_ok=True)
    missing = [each for each in wanted if not (out / f"{each.name}.json").exists()]
    with ThreadPoolExecutor(config.workers) as pool:
        for number, _ in enumerate(pool.map(lambda each: _make(each, out), missing), 1):
            progress(number)
    return len(wanted)


def _make(each: Spoken, out: Path) -> None:
    spoken = speak(each.text, each.voice)
    write_audio(out / f"{each.name}.wav", spoken.wave, SAMPLE_RATE)
    words = [{"word": w, "start_time": round(a, 4), "end_time": round(b, 4)} for w, a, b in spoken.words]
    content = {"text": each.text, "voice": each.voice, "times": spoken.times, "aligned_text": words}
    partial = out / f"{each.name}.json.partial"
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(out / f"{each.name}.json")


def _passages(source: str, config: SynthesisConfig, count: int) -> list[list[str]]:
    drawn = chosen(source, config.length, config.words, count, config.seed, config.test)
    if len(drawn) < count:
        raise InputError(f"{source}: {len(drawn)} passages, want {count}; lower --count, or give more text")
    return [passage for _, passage in drawn]


def _stories(source: str, out: Path, config: SynthesisConfig) -> list[Spoken]:
    drawn = _passages(source, config, config.count)
    return [
        Spoken(f"{number:06d}", " ".join(passage), config.voices[number % len(config.voices)])
        for number, passage in enumerate(drawn)
    ]


def _swag(source: str, out: Path, config: SynthesisConfig) -> list[Spoken]:
    """Triplets in three files each, listed in preferences.jsonl; repetitive ones are left out before counting."""
    rows: list[str] = []
    files: list[Spoken] = []
    for prompt, ending, wrong in _endings(source, config, MOST_REPETITION):
        stem, voice = f"{len(rows):06d}", config.voices[len(rows) % len(config.voices)]
        texts = {"prompt": prompt, "chosen": ending, "rejected": wrong}
        files += [Spoken(f"{stem}-{part}", text, voice) for part, text in texts.items()]
        row = {f"{part}_path": f"{stem}-{part}.wav" for part in texts}
        row |= {f"{part}_text": text for part, text in texts.items()}
        repetition = auto_bleu(text_tokens(f"{prompt} {ending}"))
        rows.append(json.dumps({"speaker": voice, **row, "auto_bleu2": repetition}))
    out.mkdir(parents=True, exist_ok=True)
    (out / PREFERENCES).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return files


def _topic(source: str, out: Path, config: SynthesisConfig) -> list[Spoken]:
    pairs = [(f"{p} {e}", f"{p} {wrong}") for p, e, wrong in _endings(source, config, 1.1)]
    return _paired(pairs, ("_correct", "_incorrect"), config.voices)


def _order(source: str, out: Path, config: SynthesisConfig) -> list[Spoken]:
    random = np.random.default_rng(config.seed + 1)
    pairs = []
    for passage in _passages(source, config, config.count):
        text = " ".join(passage)
        words = text.rstrip(".!?").split()
        places = [i for i in range(len(words) - 1) if words[i].lower() != words[i + 1].lower()]
        at = int(random.choice(places)) if places else 0
        words[at], words[at + 1] = words[at + 1], words[at]
        pairs.append((text, " ".join(words) + text[-1]))
    return _paired(pairs, ("_correct", "_incorrect"), config.voices)


def _paired(pairs: Sequence[tuple[str, str]], suffixes: tuple[str, str], voices: tuple[str, ...]) -> list[Spoken]:
    """Files 2k (right) and 2k + 1 (wrong), the layout of StoryCloze."""
    return [
        Spoken(f"{2 * number + side}{suffixes[side]}", text, voices[number % len(voices)])
        for number, pair in enumerate(pairs)
        for side, text in enumerate(pair)
    ]


def _endings(source: str, config: SynthesisConfig, below: float) -> list[tuple[str, str, str]]:
    """`count` times prompt, true ending, ending of another document; texts of more than `below` auto-BLEU-2 dropped."""
    drawn = chosen(source, config.length, config.words, 4 * config.count + 8, config.seed, config.test)
    random = np.random.default_rng(config.seed + 1)
    triplets = []
    for document, passage in drawn:
        others = [other[-1] for identifier, other in drawn if identifier != document and other[-1] != passage[-1]]
        if not others:
            raise InputError(f"{source}: one document only; wrong endings come from other documents")
        wrong = others[int(random.integers(len(others)))]
        if auto_bleu(text_tokens(" ".join(passage))) < below:
            triplets.append((" ".join(passage[:-1]), passage[-1], wrong))
        if len(triplets) == config.count:
            return triplets
    raise InputError(f"{source}: {len(triplets)} triplets, want {config.count}; lower --count, or give more text")
