"""A prepared dataset: a folder with dataset.json, one tokenizer file and token shards, and its splits.

A pair is one (input, target) position. Pairs of a split are numbered through all its documents in order;
document i owns pairs [starts[i], starts[i + 1]), as many as it has tokens plus one for D.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hotplate.train.data.mixed import AnyTokenizer, open_tokenizer
from hotplate.train.data.shards import Shard, Verify, check_ids
from hotplate.train.errors import InputError
from hotplate.train.untrusted import plain_name, read_object

MANIFEST = "dataset.json"
VERSION = 1


@dataclass(frozen=True)
class ShardEntry:
    """A shard as dataset.json lists it. The header hash commits to the body and index hashes inside the
    header.
    """

    file: str  # a plain name inside the folder
    tokens: int  # pairs
    documents: int
    bytes: int  # UTF-8 bytes of the text
    characters: int
    header_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    tokenizer_file: str
    tokenizer_sha256: str
    vocab: int
    eod: int
    source: dict  # where the text came from and what was skipped, for people
    splits: dict[str, list[ShardEntry]]
    version: int = VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256, hex, over everything that decides the tokens and their order."""
        content = [self.tokenizer_sha256, self.vocab, self.eod]
        shards = {name: [entry.header_sha256 for entry in entries] for name, entries in self.splits.items()}
        return hashlib.sha256(json.dumps([content, shards], sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises InputError: no such file, not JSON, a missing or surplus field, a name that leaves the
        folder.
        """
        path = folder / MANIFEST
        content = read_object(path, "the dataset", "prepare the data again")
        if content.get("version") != VERSION:
            raise InputError(f"{path}: version {content.get('version')}, this hotplate reads {VERSION}; prepare again")
        try:
            splits = {name: [ShardEntry(**entry) for entry in entries] for name, entries in content["splits"].items()}
            manifest = cls(**{**content, "splits": splits})
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: not a dataset description: {error}; prepare the data again") from error
        manifest._check_types(path)
        for name in (
            manifest.tokenizer_file,
            *(entry.file for entries in splits.values() for entry in entries),
        ):
            if not isinstance(name, str) or not plain_name(name):
                raise InputError(f"{path}: file name {name!r} must be a plain name inside the folder")
        return manifest

    def _check_types(self, path: Path) -> None:
        """InputError unless every number is a count and every hash a text."""
        counts = {"vocab": self.vocab, "eod": self.eod}
        texts = {"tokenizer_sha256": self.tokenizer_sha256}
        for name, entries in self.splits.items():
            for entry in entries:
                facts = asdict(entry)
                texts |= {f"{name}: {key}": facts.pop(key) for key in ("header_sha256", "file")}
                counts |= {f"{name}: {entry.file!r}: {key}": value for key, value in facts.items()}
        for key, count in counts.items():
            if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 1 << 63:
                raise InputError(f"{path}: {key} must be a count, got {str(count)[:40]!r}; prepare the data again")
        for key, text in texts.items():
            if not isinstance(text, str):
                raise InputError(f"{path}: {key} must be a text, got {str(text)[:40]!r}; prepare the data again")


class Split:
    """The documents of one split, across its shards.

    Attributes: `name`; `documents` (N); `tokens` (pairs in all); `lengths` (int64 [N], pairs of each
    document); `starts` (int64 [N + 1], first pair of each); `bytes` and `characters` of the text; `vocab`;
    `eod`; `shards`.
    """

    def __init__(self, name: str, shards: list[Shard], bytes: int, characters: int):
        self.name, self.shards, self.bytes, self.characters = name, shards, bytes, characters
        self.vocab, self.eod = shards[0].header.vocab, shards[0].header.eod
        self.lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.documents, self.tokens = len(self.lengths), int(self.starts[-1])
        self._first_pair = np.cumsum([0, *(shard.header.tokens - 1 for shard in shards)])

    def read(self, document: int, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """int64 inputs and targets of pairs [start, stop) of a document; the first input is D, the last
        target is D.
        """
        length = int(self.lengths[document])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise ValueError(f"Split.read: want 0 <= start <= stop <= {length}, got {start} and {stop}")
        return self.gather(self.starts[document] + np.arange(start, stop))

    def gather(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 inputs and targets of the pairs numbered `pairs` (int64, any shape), each checked to be below
        V.
        """
        inputs, targets = np.empty(pairs.shape, np.int64), np.empty(pairs.shape, np.int64)
        for number, chosen, place in self._by_shard(pairs):
            body = self.shards[number].body
            inputs[chosen], targets[chosen] = body[place], body[place + 1]
        self._check(inputs, pairs, 0)
        self._check(targets, pairs, 1)
        return inputs, targets

    def gather_targets(self, pairs: np.ndarray) -> np.ndarray:
        """int64 targets of the pairs numbered `pairs`, each checked to be below V."""
        targets = np.empty(pairs.shape, np.int64)
        for number, chosen, place in self._by_shard(pairs):
            targets[chosen] = self.shards[number].body[place + 1]
        self._check(targets, pairs, 1)
        return targets

    def documents_of(self, pairs: np.ndarray) -> np.ndarray:
        """int64 number of the document that owns each pair."""
        return np.searchsorted(self.starts, pairs, side="right") - 1

    def bodies(self) -> Iterator[np.ndarray]:
        """The memory-mapped body of each shard: every target, after one leading D."""
        for shard in self.shards:
            yield shard.body

    def _by_shard(self, pairs: np.ndarray):
        if len(self.shards) == 1:
            yield 0, ..., pairs
            return
        owner = np.searchsorted(self._first_pair, pairs, side="right") - 1
        for number in np.unique(owner):
            chosen = owner == number
            yield number, chosen, pairs[chosen] - self._first_pair[number]

    def _check(self, ids: np.ndarray, pairs: np.ndarray, shift: int) -> None:
        if ids.size and ids.max() >= self.vocab:
            at = int((ids >= self.vocab).argmax())
            pair = int(pairs.flat[at])
            number = int(np.searchsorted(self._first_pair, pair, side="right")) - 1
            place = pair - int(self._first_pair[number]) + shift
            check_ids(ids.reshape(-1)[at : at + 1], self.vocab, self.shards[number].path, place)


class Dataset:
    """An open dataset. Attributes: `folder`, `manifest`, `tokenizer`, `vocab`, `eod`, `fingerprint`,
    `splits`.
    """

    def __init__(self, folder: Path, manifest: Manifest, tokenizer: AnyTokenizer, splits: dict[str, Split]):
        self.folder, self.manifest, self.tokenizer, self._splits = folder, manifest, tokenizer, splits
        self.vocab, self.eod, self.fingerprint = manifest.vocab, manifest.eod, manifest.fingerprint
        self.splits = tuple(splits)

    @classmethod
    def open(cls, folder: str | Path, verify: Verify = "full") -> "Dataset":
        """Open a prepared folder. "full" hashes every shard, "header" trusts the bodies.

        Raises InputError when the manifest, the tokenizer and the shards do not belong together or are
        damaged.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        tokenizer = open_tokenizer(folder / manifest.tokenizer_file, eod=manifest.eod)
        splits = {}
        for name, entries in manifest.splits.items():
            if not entries:
                raise InputError(f"{folder / MANIFEST}: split {name!r} lists no shards; prepare the data again")
            for entry in entries:
                if (folder / entry.file).is_symlink():
                    raise InputError(f"{folder / entry.file}: a symbolic link; the shards must lie in the folder")
            shards = [Shard.open(folder / entry.file, verify) for entry in entries]
            for entry, shard in zip(entries, shards, strict=True):
                _check_belongs(folder, manifest, tokenizer, entry, shard)
            sizes = (sum(entry.bytes for entry in entries), sum(entry.characters for entry in entries))
            splits[name] = Split(name, shards, *sizes)
        if tokenizer.fingerprint != manifest.tokenizer_sha256 or tokenizer.vocab != manifest.vocab:
            headers = sorted({shard.header.tokenizer_sha256 for split in splits.values() for shard in split.shards})
            raise InputError(
                f"{folder}: the tokenizer does not belong to this dataset: {manifest.tokenizer_file} has "
                "SHA-256 "
                f"{tokenizer.fingerprint} and {tokenizer.vocab} ids; {MANIFEST} wants "
                f"{manifest.tokenizer_sha256} and "
                f"{manifest.vocab}; the shards want {', '.join(headers)}"
            )
        return cls(folder, manifest, tokenizer, splits)

    def split(self, name: str) -> Split:
        if name not in self._splits:
            raise InputError(f"{self.folder}: no split {name!r}; it has {', '.join(self._splits)}")
        return self._splits[name]


def unigram_nats(train: Split, test: Split) -> float:
    """Nats per target of `test` under the add-one-smoothed unigram distribution of the targets of `train`.

    The loss of a model that knows only token frequencies: a trained one must be below it.
    """
    counts, wanted = _target_counts(train), _target_counts(test)
    log_probability = np.log(counts + 1.0) - np.log(counts.sum() + float(train.vocab))
    return float(-(wanted * log_probability).sum() / wanted.sum())


def _target_counts(split: Split) -> np.ndarray:
    counts = np.zeros(split.vocab, np.int64)
    for body in split.bodies():
        for start in range(1, len(body), 1 << 22):
            counts += np.bincount(body[start : start + (1 << 22)], minlength=split.vocab)
    return counts


def _check_belongs(folder: Path, manifest: Manifest, tokenizer: AnyTokenizer, entry: ShardEntry, shard: Shard) -> None:
    header = shard.header
    if header.tokenizer_sha256 != manifest.tokenizer_sha256:
        raise InputError(
            f"{shard.path}: encoded with another tokenizer: the shard wants SHA-256 "
            f"{header.tokenizer_sha256}, {MANIFEST} "
            f"{manifest.tokenizer_sha256}, {manifest.tokenizer_file} has {tokenizer.fingerprint}"
        )
    facts = {
        "vocabulary": (manifest.vocab, header.vocab),
        "end-of-document id": (manifest.eod, header.eod),
        "tokens": (entry.tokens, header.tokens - 1),
        "documents": (entry.documents, header.documents),
        "header SHA-256": (entry.header_sha256, shard.header_sha256),
    }
    for fact, (want, got) in facts.items():
        if want != got:
            raise InputError(f"{shard.path}: {fact} {got}, but {folder / MANIFEST} says {want}; prepare the data again")
