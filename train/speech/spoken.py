"""Data sets of text and speech: documents with word times, interleaved anew in every epoch.

The folder is a data set like any other (docs/data.md). Its `train`, `validation` and `test` splits hold the first
epoch's draw, `speech` and `text` the training documents as one or the other; `train.spoken.safetensors` beside them is
what the draws of further epochs are made from.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hotplate.train.data.dataset import Dataset
from hotplate.train.data.documents import Skipped
from hotplate.train.data.encoding import Encoded, write_dataset
from hotplate.train.data.mixed import MixedTokenizer, Segment
from hotplate.train.data.prepare import Survey, assign_splits, order_key
from hotplate.train.data.publish import exclusive, published
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError
from hotplate.train.speech.interleave import InterleaveConfig, Spoken, align, interleaved, speech_words
from hotplate.train.speech.store import UnitFolder
from hotplate.train.speech.texts import documents
from hotplate.train.speech.voices import Word
from hotplate.train.untrusted import parse_json

SPOKEN = "train.spoken.safetensors"


@dataclass(frozen=True, kw_only=True)
class SpokenConfig(InterleaveConfig):
    """Which documents, cut how."""

    alignments: tuple[str, ...]
    """folders with NAME.json (aligned_text: word, start_time, end_time) for the audio files that the units are of"""
    tokenizer: str
    """of text: a prepared data set, a SentencePiece .model or a tokenizers .json file"""
    text: str | None = None
    """documents of the text split: a built-in corpus, a file or a folder; none = the texts of the training documents"""
    validation: float = 0.01
    """share of the units, by documents"""
    test: float = 0.01
    """share of the units, by documents"""
    shard_tokens: int = 1 << 28
    """tokens per shard file"""


@dataclass
class Prepared:
    """A new data set, and the utterances that it was made without."""

    dataset: Dataset
    failed: list[str] = field(default_factory=list)


class Draw:
    """Documents of one epoch in memory, with the surface of a `Split` that sources read.

    `starts` int64 [N + 1], first (input, target) pair of each document.
    """

    def __init__(self, ids: Sequence[np.ndarray], tokenizer: MixedTokenizer):
        self.name, self.eod, self.vocab = "train", tokenizer.eod, tokenizer.vocab
        lengths = np.array([len(each) + 1 for each in ids], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.documents, self.tokens = len(lengths), int(self.starts[-1])
        self._body = np.full(self.tokens + 1, tokenizer.eod, np.int32)
        for start, each in zip(self.starts, ids, strict=False):
            self._body[start + 1 : start + 1 + len(each)] = each

    def gather(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 inputs and targets of the pairs numbered `pairs`."""
        return self._body[pairs].astype(np.int64), self._body[pairs + 1].astype(np.int64)


def draw(spoken: Sequence[Spoken], tokenizer: MixedTokenizer, config: InterleaveConfig, epoch: int) -> list[np.ndarray]:
    """int64 ids of every document in `epoch`; the same for the same arguments."""
    return [interleaved(each, speech_words(len(each.words), config, each.name, epoch), tokenizer) for each in spoken]


def prepare_spoken(inputs: tuple[str, ...], out: Path, config: SpokenConfig) -> Prepared:
    """Make the data set of all utterances with word times; one without, or with damaged ones, is left out and named.

    InputError: folders of different units, no usable utterance, `out` exists, a tokenizer that cannot be read.
    """
    folders = [UnitFolder.open(Path(given)) for given in inputs]
    if not folders:
        raise InputError("hotplate speech interleave: want one or more folders of `hotplate speech encode`")
    for folder in folders[1:]:
        folders[0].description.check_same(folder.description, str(folder.path))
    text = _text_tokenizer(Path(config.tokenizer))
    failed: list[str] = []
    with exclusive(out):
        if out.exists():
            raise InputError(f"{out} exists already; remove it or choose another -o")
        with published(out) as partial:
            tokenizer = MixedTokenizer.write(partial, text, folders[0].description)
            spoken = list(_aligned(folders, tokenizer, config, failed))
            if not spoken:
                raise InputError(failed[0] if failed else f"{', '.join(inputs)}: no utterances")
            _build(partial, spoken, tokenizer, config)
    return Prepared(Dataset.open(out, "header"), failed)


def read_spoken(dataset: Dataset) -> tuple[list[Spoken], InterleaveConfig] | None:
    """The documents that draws are made from, and how; None for a data set without. InputError for a damaged file."""
    path = dataset.folder / SPOKEN
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            names, config = parse_json(facts["names"]), InterleaveConfig(**parse_json(facts["interleave"]))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        for counts, counted in (("unit_counts", ("units",)), ("word_counts", ("word_ends", "first", "last"))):
            sizes = {arrays[counts].sum(), *(len(arrays[name]) for name in counted)}
            if len(sizes) != 1 or arrays[counts].ndim != 1 or (arrays[counts] < 0).any():
                raise ValueError(f"{counts} do not add up")
        words = np.split(arrays["text"], arrays["word_ends"][:-1])
        found, unit, word = [], 0, 0
        for name, units, count in zip(names, arrays["unit_counts"], arrays["word_counts"], strict=True):
            of = slice(word, word + int(count))
            found.append(
                Spoken(
                    name,
                    arrays["units"][unit : unit + int(units)],
                    words[of],
                    arrays["first"][of],
                    arrays["last"][of],
                )
            )
            unit, word = unit + int(units), word + int(count)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot read the aligned documents: {error}; make the data set again") from error
    if facts.get("fingerprint") != dataset.tokenizer.fingerprint:
        raise InputError(f"{path}: of another vocabulary than the data set; make it again")
    return found, config


def _text_tokenizer(path: Path) -> Tokenizer:
    if not path.is_dir():
        return Tokenizer.load(path)
    found = Dataset.open(path, "header").tokenizer
    if not isinstance(found, Tokenizer):
        raise InputError(f"--tokenizer {path}: a data set of {found.path.name}, want one of text")
    return found


def _aligned(
    folders: list[UnitFolder], tokenizer: MixedTokenizer, config: SpokenConfig, failed: list[str]
) -> Iterator[Spoken]:
    seconds = tokenizer.description.unit_seconds
    for folder in folders:
        for utterance in folder.utterances():
            try:
                words = _words(utterance.name, config.alignments)
            except InputError as error:
                failed.append(str(error))
                continue
            first, last = align(words, utterance.durations, seconds)
            ids = [tokenizer.tokenizer.encode(word.word).astype(np.int32) for word in words]
            yield Spoken(utterance.name, utterance.units, ids, first, last)


def _words(name: str, folders: tuple[str, ...]) -> list[Word]:
    """The words of an audio file. InputError: no alignment, or none that goes forward in time."""
    beside = Path(name).with_suffix(".json")
    path = next((Path(folder) / beside for folder in folders if (Path(folder) / beside).is_file()), None)
    if path is None:
        raise InputError(f"{name}: no alignment {beside} in {', '.join(folders)}")
    return read_alignment(path)


def read_alignment(path: Path) -> list[Word]:
    """The words of a file of `aligned_text`. InputError where it has none, or they do not go forward in time."""
    try:
        rows = parse_json(path.read_text(encoding="utf-8"))["aligned_text"]
        words = [Word(str(row["word"]), float(row["start_time"]), float(row["end_time"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: no aligned_text of word, start_time, end_time: {error!r}") from error
    late = [a.word for a, b in zip(words, words[1:], strict=False) if b.start < a.start]
    if not words or late or not all(0 <= word.start <= word.end < math.inf for word in words):
        raise InputError(f"{path}: want words in the order of their times, got {late or 'none'}")
    return words


def _build(folder: Path, spoken: list[Spoken], tokenizer: MixedTokenizer, config: SpokenConfig) -> None:
    hashes = [order_key(each.name, config.seed) for each in spoken]
    sizes = [len(each.units) for each in spoken]
    survey = Survey(hashes, sizes, Skipped(), [each.name for each in spoken])
    split_of = assign_splits(survey, config.validation, config.test)
    how = InterleaveConfig(method=config.method, share=config.share, span=config.span, seed=config.seed)
    training = [each for each, split in zip(spoken, split_of, strict=True) if split == "train"]
    _write_spoken(folder / SPOKEN, training, tokenizer, how)
    lengths, characters = tokenizer.byte_lengths(), tokenizer.character_lengths()
    counts: dict[str, dict[str, int]] = {}

    def labelled() -> Iterator[tuple[str, np.ndarray]]:
        yield from zip(split_of, draw(spoken, tokenizer, how, epoch=0), strict=True)
        marker = np.array([tokenizer.marker("text")])
        for each in training:
            yield "speech", tokenizer.join([Segment(units=each.units)])
            if config.text is None:
                yield "text", np.concatenate([marker, *each.words])
        for _, text in documents(config.text) if config.text is not None else ():
            yield "text", tokenizer.join([Segment(text=text)])

    def encoded() -> Iterator[tuple[str, Encoded]]:
        first, last = tokenizer.range_of("speech")
        for split, ids in labelled():
            count = counts.setdefault(split, {"text": 0, "speech": 0})
            count["text"] += int((ids < first).sum())
            count["speech"] += int(((ids >= first) & (ids < last)).sum())
            yield split, Encoded(ids.astype(np.uint32), int(lengths[ids].sum()), int(characters[ids].sum()))

    source = {
        "interleave": {"method": how.method, "share": how.share, "span": how.span, "seed": how.seed},
        "text": config.text,
        "tokens": counts,
    }
    write_dataset(folder, encoded(), tokenizer, config.shard_tokens, source)


def _write_spoken(path: Path, spoken: list[Spoken], tokenizer: MixedTokenizer, how: InterleaveConfig) -> None:
    words = [word for each in spoken for word in each.words]
    tensors = {
        "units": np.concatenate([each.units for each in spoken]),
        "unit_counts": np.array([len(each.units) for each in spoken], np.int64),
        "word_counts": np.array([len(each.words) for each in spoken], np.int64),
        "first": np.concatenate([each.first for each in spoken]),
        "last": np.concatenate([each.last for each in spoken]),
        "text": np.concatenate(words),
        "word_ends": np.cumsum([len(word) for word in words], dtype=np.int64),
    }
    facts = {
        "fingerprint": tokenizer.fingerprint,
        "names": json.dumps([each.name for each in spoken]),
        "interleave": json.dumps({"method": how.method, "share": how.share, "span": how.span, "seed": how.seed}),
    }
    save_file(tensors, path, facts)
