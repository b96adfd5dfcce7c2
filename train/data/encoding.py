"""Documents to token ids in parallel processes, in order, and into the shards of their splits."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from hotplate.train.data.dataset import Manifest, ShardEntry
from hotplate.train.data.documents import Document
from hotplate.train.data.mixed import AnyTokenizer
from hotplate.train.data.processes import in_order
from hotplate.train.data.shards import Shard, ShardWriter
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Encoded:
    """A document as ids (uint32, without D) and the size of its text."""

    ids: np.ndarray
    bytes: int
    characters: int


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, workers: int) -> Iterator[Encoded]:
    """Encode every document, in order, and check that its ids decode to exactly its text.

    At most two groups of about 1 MiB per worker are in memory. `workers` <= 1 works in this process.
    Raises InputError naming the document that the tokenizer loses text of.
    """
    encode = (
        partial(_encode_group, tokenizer)
        if workers <= 1
        else partial(_encode_in_worker, str(tokenizer.path), tokenizer.eod)
    )
    yield from in_order(encode, documents, workers)


class SplitWriter:
    """Writes one split as shards of about `shard_tokens`; a document is never cut between two. A context
    manager.
    """

    def __init__(self, folder: Path, name: str, tokenizer: AnyTokenizer, shard_tokens: int):
        self._folder, self._name, self._tokenizer, self._shard_tokens = folder, name, tokenizer, shard_tokens
        self._finished: list[ShardEntry] = []
        self._writer: ShardWriter | None = None
        self._bytes = self._characters = 0

    def add(self, document: Encoded) -> None:
        if self._writer is not None and self._writer.tokens + document.ids.size > self._shard_tokens:
            self._finish_shard(self._writer)
            self._writer = None
        if self._writer is None:
            path = self._folder / f"{self._name}-{len(self._finished):05d}.tokens"
            tokenizer = self._tokenizer
            self._writer = ShardWriter(
                path, vocab=tokenizer.vocab, eod=tokenizer.eod, tokenizer_sha256=tokenizer.fingerprint
            )
        self._writer.add(document.ids)
        self._bytes += document.bytes
        self._characters += document.characters

    def finish(self) -> list[ShardEntry]:
        """Complete the last shard and describe all of them."""
        if self._writer is not None:
            self._finish_shard(self._writer)
            self._writer = None
        return self._finished

    def _finish_shard(self, writer: ShardWriter) -> None:
        writer.close()
        shard = Shard.open(writer.path)
        self._finished.append(
            ShardEntry(
                writer.path.name,
                writer.tokens - 1,
                writer.documents,
                self._bytes,
                self._characters,
                shard.header_sha256,
            )
        )
        self._bytes = self._characters = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._writer is not None:
            self._writer.abort()


def write_dataset(
    folder: Path,
    documents: Iterable[tuple[str, Encoded]],
    tokenizer: AnyTokenizer,
    shard_tokens: int,
    source: dict,
) -> None:
    """Write (split name, document) pairs as shards, and dataset.json, beside the tokenizer's file in
    `folder`.
    """
    writers: dict[str, SplitWriter] = {}
    with ExitStack() as stack:
        for name, document in documents:
            if name not in writers:
                writers[name] = stack.enter_context(SplitWriter(folder, name, tokenizer, shard_tokens))
            writers[name].add(document)
        splits = {name: writers[name].finish() for name in sorted(writers, key=split_order)}
    Manifest(
        tokenizer_file=tokenizer.path.name,
        tokenizer_sha256=tokenizer.fingerprint,
        vocab=tokenizer.vocab,
        eod=tokenizer.eod,
        source=source,
        splits=splits,
    ).write(folder)


def split_order(name: str) -> tuple[int, str]:
    """Sort key of split names: train, validation, test, then the others."""
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS)), name


def _encode_group(tokenizer: Tokenizer, group: list[Document]) -> list[Encoded]:
    encoded = []
    for document in group:
        try:
            ids = tokenizer.encode_verified(document.text)
        except InputError as error:
            raise InputError(f"{document.identifier}: {error}") from error
        encoded.append(Encoded(ids.astype(np.uint32), len(document.text.encode()), len(document.text)))
    return encoded


@cache
def _open_tokenizer(path: str, eod: int) -> Tokenizer:
    return Tokenizer.load(path, eod)


def _encode_in_worker(path: str, eod: int, group: list[Document]) -> list[Encoded]:
    return _encode_group(_open_tokenizer(path, eod), group)
