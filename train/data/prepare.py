"""Text to a prepared dataset: survey, split by document, train a tokenizer, encode, write, publish."""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from hotplate.train.data.corpora import CORPORA
from hotplate.train.data.dataset import MANIFEST, Dataset
from hotplate.train.data.documents import SUFFIXES, Document, FolderSource, OnError, Skipped
from hotplate.train.data.encoding import Encoded, encode_documents, write_dataset
from hotplate.train.data.publish import exclusive, published
from hotplate.train.data.shards import Verify
from hotplate.train.data.tokenizer import Tokenizer, train_tokenizer
from hotplate.train.errors import InputError

WORKER_BYTES = 4 << 20  # text per worker below which starting another process costs more than it saves
REPORT_SECONDS = 30  # between progress lines where there is no terminal


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare, and how."""

    source: str
    """A file, a folder, or a built-in corpus: sotu, python-stdlib."""
    out: str
    """The dataset folder to make; it must not exist."""
    vocab: int = 16_384
    """Ids of the tokenizer to train, 2,048 to 131,072; a given tokenizer has its own."""
    tokenizer: str | None = None
    """A SentencePiece .model or a tokenizers .json file; without it one is trained on the training split."""
    eod: str | None = None
    """The end-of-document symbol of the given tokenizer, its text or id; by default a well-known one."""
    text_field: str = "text"
    """The field of .jsonl and .parquet records that holds the text."""
    separator: str | None = None
    """Text that divides .txt, .md and .py files into several documents; by default a file is one."""
    validation: float = 0.05
    """Share of the bytes, by whole documents."""
    test: float = 0.05
    """Share of the bytes, by whole documents."""
    seed: int = 0
    """Chooses the documents of the splits."""
    on_error: OnError = "raise"
    """Whether invalid UTF-8 or JSON ends the preparation or is skipped and counted."""
    tokenizer_bytes: int = 64 << 20
    """Most text, in bytes, that the tokenizer is trained on."""
    shard_tokens: int = 1 << 28
    """Tokens per shard file."""
    workers: int | None = None
    """Processes that encode; by default one per available core."""

    def __post_init__(self):
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise InputError(f"--validation {self.validation} and --test {self.test} must be >= 0 and sum to below 1")
        if self.shard_tokens < 1 or self.tokenizer_bytes < 1:
            raise InputError(
                f"--shard-tokens {self.shard_tokens} and --tokenizer-bytes {self.tokenizer_bytes} must be >= 1"
            )


@dataclass(frozen=True)
class Survey:
    """A first pass over the documents: their order under the seed's hash, their sizes, what was skipped."""

    hashes: list[bytes]
    sizes: list[int]  # UTF-8 bytes
    skipped: Skipped

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    def shuffled(self) -> list[int]:
        """Document numbers in hash order: the same for the same identifiers and seed."""
        return sorted(range(len(self.hashes)), key=lambda number: (self.hashes[number], number))


def prepare(config: PrepareConfig) -> Dataset:
    """Make the dataset folder `config.out`; it appears complete or not at all.

    Raises InputError: nothing readable in the source, invalid text, too few documents, a full disk.
    """
    folder = Path(config.out)
    with exclusive(folder):
        if folder.exists():
            raise InputError(f"{folder} exists already; remove it or choose another --out")
        _build(config, folder)
    return Dataset.open(folder, "header")


def built_in(name: str, vocab: int = 16_384, verify: Verify = "full") -> Dataset:
    """A built-in corpus from the cache, prepared on first use; of several processes one prepares, the others
    wait.

    The cache is `$HOTPLATE_CACHE`, by default ~/.cache/hotplate.
    """
    if name not in CORPORA:
        raise InputError(f"no built-in corpus {name!r}; there are {', '.join(CORPORA)}")
    cache = Path(os.environ.get("HOTPLATE_CACHE") or Path.home() / ".cache" / "hotplate")
    folder = cache / "datasets" / f"{name}-{vocab}-{CORPORA[name].key}"
    if not folder.exists():  # it appears whole, so one that exists needs no lock and may be read-only
        with exclusive(folder):
            if not folder.exists():
                _build(PrepareConfig(source=name, out=str(folder), vocab=vocab), folder)
    try:
        return Dataset.open(folder, verify)
    except InputError as error:
        raise InputError(f"{error} (a cached dataset: remove {folder} and it is made again)") from error


def open_data(name_or_path: str, vocab: int = 16_384, verify: Verify = "full") -> Dataset:
    """A built-in corpus by name, with `vocab` ids, or a prepared folder, which has its own vocabulary."""
    if name_or_path in CORPORA:
        return built_in(name_or_path, vocab, verify)
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return Dataset.open(path, verify)
    if not path.exists():
        raise InputError(f"no dataset {name_or_path!r}: neither a built-in corpus ({', '.join(CORPORA)}) nor a folder")
    if path.is_file() and path.name.endswith(SUFFIXES) or path.is_dir() and any(FolderSource(path).found()):
        raise InputError(
            f"{path} holds text, not a prepared dataset; first run: "
            f"hotplate data prepare --source {path} --out "
            f"{path.with_name(path.name.split('.')[0] + '-prepared')}"
        )
    raise InputError(f"{path}: no {MANIFEST} there, and no {', '.join(SUFFIXES)} files to prepare")


def assign_splits(survey: Survey, validation: float, test: float) -> list[str]:
    """The split of each document: in hash order, test and validation are filled to their share of the bytes.

    Raises InputError when there are fewer documents than splits.
    """
    wanted = {"test": test * survey.bytes, "validation": validation * survey.bytes}
    split_of = ["train"] * len(survey.sizes)
    order, at = survey.shuffled(), 0
    for name, share in wanted.items():
        taken = 0
        # A document is taken while that brings the split nearer to its share, and at least one.
        while at < len(order) and share > 0 and (not taken or taken + survey.sizes[order[at]] / 2 <= share):
            split_of[order[at]] = name
            taken += survey.sizes[order[at]]
            at += 1
    needed = {"train", *(name for name, share in wanted.items() if share > 0)}
    if set(split_of) != needed:
        raise InputError(
            f"{len(split_of)} documents are too few for the splits {', '.join(sorted(needed))}, which hold "
            "whole documents; "
            "give more files, divide them with --separator, or pass --validation 0 --test 0"
        )
    return split_of


def _build(config: PrepareConfig, folder: Path) -> None:
    source = CORPORA.get(config.source) or FolderSource(
        Path(config.source), config.text_field, config.separator, config.on_error
    )
    survey = _survey(source, config.seed)
    split_of = assign_splits(survey, config.validation, config.test)
    with published(folder) as partial:
        tokenizer = _tokenizer_for(config, source, survey, split_of, partial)
        documents = _reread(source, survey, config.seed)
        workers = config.workers or len(os.sched_getaffinity(0))
        encoded = encode_documents(documents, tokenizer, min(workers, 1 + survey.bytes // WORKER_BYTES))
        labelled = zip(split_of, _with_progress(encoded, survey.bytes), strict=True)
        skipped = {
            "empty": survey.skipped.empty,
            "invalid": survey.skipped.invalid,
            "examples": survey.skipped.examples,
        }
        description = {**source.describe(), "seed": config.seed, "skipped": skipped}
        write_dataset(partial, labelled, tokenizer, config.shard_tokens, description)


def _survey(source, seed: int) -> Survey:
    skipped = Skipped()
    hashes, sizes = [], []
    for document in source.read(skipped):
        hashes.append(identifier_hash(document.identifier, seed))
        sizes.append(len(document.text.encode()))
    if not sizes:
        raise InputError(
            f"{source.describe()}: no text in it: {skipped.empty} empty and {skipped.invalid} invalid documents"
        )
    return Survey(hashes, sizes, skipped)


def _reread(source, survey: Survey, seed: int) -> Iterator[Document]:
    read = 0
    for document in source.read(Skipped()):
        if read == len(survey.hashes) or identifier_hash(document.identifier, seed) != survey.hashes[read]:
            raise InputError(f"{document.identifier}: the source changed while it was being prepared; run it again")
        read += 1
        yield document
    if read < len(survey.hashes):
        raise InputError(f"{source.describe()}: the source changed while it was being prepared; run it again")


def _tokenizer_for(config, source, survey: Survey, split_of: list[str], folder: Path) -> Tokenizer:
    if config.tokenizer is not None:
        given = Tokenizer.load(config.tokenizer, config.eod)
        copy = folder / ("tokenizer.json" if given.path.suffix == ".json" else "tokenizer.model")
        shutil.copyfile(given.path, copy)
        return Tokenizer.load(copy, given.eod)
    chosen, size = set(), 0
    for number in survey.shuffled():
        if split_of[number] == "train" and size < config.tokenizer_bytes:
            chosen.add(number)
            size += survey.sizes[number]
    documents = enumerate(_reread(source, survey, config.seed))
    # A single document can be larger than the whole allowance.
    texts = (document.text[: config.tokenizer_bytes] for number, document in documents if number in chosen)
    return train_tokenizer(texts, config.vocab, folder / "tokenizer.model")


def identifier_hash(identifier: str, seed: int) -> bytes:
    """What orders documents for the splits."""
    return hashlib.blake2b(identifier.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()


def _with_progress(documents: Iterator[Encoded], total_bytes: int) -> Iterator[Encoded]:
    """Pass documents on, with a bar on a terminal and a line on standard error now and then elsewhere."""
    console = Console(stderr=True)
    done, reported = 0, time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding", total=total_bytes)
        for document in documents:
            yield document
            done += document.bytes
            progress.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                print(f"encoding: {done / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB", file=sys.stderr, flush=True)
