"""Token files of other trainers into a dataset folder: Languini's .npy books, nanoGPT's .bin, llm.c's .bin.

They carry no vocabulary, so a tokenizer file is required; every id is checked against it.
"""

import hashlib
import shutil
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hotplate.train.data.dataset import Dataset
from hotplate.train.data.encoding import Encoded, write_dataset
from hotplate.train.data.publish import exclusive, published
from hotplate.train.data.shards import check_ids
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError

GPT2_END_OF_TEXT = 50_256
LLMC_HEADER_BYTES = 256 * 4
LLMC_FORMATS: dict[tuple[int, int], np.dtype] = {  # by magic number and version
    (20_240_520, 1): np.dtype("<u2"),  # ids of GPT-2
    (20_240_801, 7): np.dtype("<u4"),  # ids of Llama 3
}
SCAN = 1 << 24  # tokens searched for separators at a time


class TokenDocument(NamedTuple):
    """A document of a foreign file: ids without separators, and where its first id is."""

    identifier: str
    split: str | None  # None: chosen by the identifier's hash
    ids: np.ndarray
    path: Path
    offset: int


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What every import needs."""

    source: str
    """The file or folder to read."""
    out: str
    """The dataset folder to make; it must not exist."""
    tokenizer: str
    """The tokenizer that made the ids: a SentencePiece .model or a tokenizers .json file."""
    eod: str | None = None
    """Its end-of-document symbol, text or id; by default a well-known one."""
    validation: float = 0.05
    """Share of the documents of files that name no split."""
    test: float = 0.05
    """Share of the documents of files that name no split."""
    shard_tokens: int = 1 << 28
    """Tokens per shard file."""


def import_languini(config: ImportConfig, file_lists: dict[str, str] | None = None) -> Dataset:
    """Import a folder of one-dimensional .npy files, one per book.

    `file_lists` maps a split to Languini's list (.npy of strings [N, 2]: path inside the folder, length);
    without it all .npy files below the folder are taken and split by the hash of their path.
    Raises InputError for an unreadable file, a path that leaves the folder, a length that differs, an id out
    of range.
    """
    folder = Path(config.source)
    listed: list[tuple[str | None, str, int | None]]
    if file_lists:
        listed = [(split, *entry) for split, path in file_lists.items() for entry in file_list(Path(path))]
    else:
        listed = [(None, path.relative_to(folder).as_posix(), None) for path in sorted(folder.rglob("*.npy"))]
    if not listed:
        raise InputError(f"{folder}: no .npy files there")
    return _import(config, "languini", (_languini_book(folder, *entry) for entry in listed))


def import_nanogpt(config: ImportConfig, separator: int = GPT2_END_OF_TEXT) -> Dataset:
    """Import nanoGPT's flat uint16 .bin files; `separator` is the id between documents.

    A file with train, val or test in its name is that split; others are split by document.
    Raises InputError for a file of odd size or an id out of range.
    """
    return _import(config, "nanogpt", _bin_documents(config, separator, _map_nanogpt))


def import_llmc(config: ImportConfig, separator: int = GPT2_END_OF_TEXT) -> Dataset:
    """Import llm.c's .bin files (256 int32 of header, then uint16 or uint32 ids); otherwise as
    `import_nanogpt`.

    Raises InputError for an unknown magic number or version, a count that differs, an id out of range.
    """
    return _import(config, "llmc", _bin_documents(config, separator, map_llmc))


def _import(config: ImportConfig, kind: str, documents: Iterable[TokenDocument]) -> Dataset:
    folder = Path(config.out)
    with exclusive(folder):
        if folder.exists():
            raise InputError(f"{folder} exists already; remove it or choose another --out")
        given = Tokenizer.load(config.tokenizer, config.eod)
        with published(folder) as partial:
            copy = partial / ("tokenizer.json" if given.path.suffix == ".json" else "tokenizer.model")
            shutil.copyfile(given.path, copy)
            tokenizer = Tokenizer.load(copy, given.eod)
            source = {"imported": kind, "path": config.source}
            write_dataset(partial, _labelled(config, tokenizer, documents), tokenizer, config.shard_tokens, source)
    return Dataset.open(folder, "header")


def _labelled(config: ImportConfig, tokenizer: Tokenizer, documents) -> Iterator[tuple[str, Encoded]]:
    byte_lengths, character_lengths = tokenizer.byte_lengths(), tokenizer.character_lengths()
    for document in documents:
        ids = document.ids
        if not ids.size:
            continue
        if ids.dtype.kind == "i" and ids.min() < 0:
            at = int((ids < 0).argmax())
            raise InputError(f"{document.path}: negative id {int(ids[at])} at token {document.offset + at}")
        check_ids(ids, tokenizer.vocab, document.path, document.offset)
        if (ids == tokenizer.eod).any():
            at = document.offset + int((ids == tokenizer.eod).argmax())
            raise InputError(
                f"{document.path}: the end-of-document id {tokenizer.eod} is inside a document, at token "
                f"{at}; "
                "give the id that separates the documents with --separator"
            )
        counted = Encoded(ids, int(byte_lengths[ids].sum()), int(character_lengths[ids].sum()))
        yield document.split or _split_by_hash(config, document.identifier), counted


def _split_by_hash(config: ImportConfig, identifier: str) -> str:
    place = int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest()) / 2**64
    if place < config.test:
        return "test"
    return "validation" if place < config.test + config.validation else "train"


def file_list(path: Path) -> Iterator[tuple[str, int]]:
    entries = _load_npy(path)
    if entries.ndim != 2 or entries.shape[1] != 2 or entries.dtype.kind != "U":
        raise InputError(f"{path}: want a file list, strings of shape [N, 2], got {entries.dtype} {entries.shape}")
    if entries.size and np.ascontiguousarray(entries).view(entries.dtype.byteorder + "u4").max() > 0x10FFFF:
        raise InputError(f"{path}: holds characters that are none; get the file again")
    for number, (name, length) in enumerate(entries.tolist()):
        if Path(name).is_absolute() or ".." in Path(name).parts or not length.isdecimal():
            raise InputError(
                f"{path}, entry {number}: want a path inside the folder and a length, got {name!r}, {length!r}"
            )
        yield name, int(length)


def _languini_book(folder: Path, split: str | None, name: str, length: int | None) -> TokenDocument:
    path = folder / name
    ids = _load_npy(path)
    if ids.ndim != 1 or ids.dtype.kind not in "ui":
        raise InputError(f"{path}: want one dimension of integers, got {ids.dtype} {ids.shape}")
    if length is not None and len(ids) != length:
        raise InputError(f"{path}: the file list says {length:,} tokens, the file has {len(ids):,}")
    return TokenDocument(name, split, ids, path, 0)


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError, MemoryError) as error:
        raise InputError(f"{path}: cannot read it as .npy: {error}") from error


def _bin_documents(config: ImportConfig, separator: int, open_file) -> Iterator[TokenDocument]:
    source = Path(config.source)
    files = [source] if source.is_file() else sorted(source.glob("*.bin"))
    if not files:
        raise InputError(f"{source}: no .bin files there")
    for path in files:
        ids = open_file(path)
        ends = [start + np.flatnonzero(ids[start : start + SCAN] == separator) for start in range(0, len(ids), SCAN)]
        edges = np.concatenate([[-1], *ends, [len(ids)]])
        for number, (left, right) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            yield TokenDocument(f"{path.name}:{number}", _split_by_name(path), ids[left + 1 : right], path, left + 1)


def _split_by_name(path: Path) -> str | None:
    for word, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        if word in path.stem:
            return split
    return None


def _map_nanogpt(path: Path) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise InputError(f"{path}: {size} bytes are not a whole, non-zero number of uint16 ids")
    return np.memmap(path, "<u2", "r")


def map_llmc(path: Path) -> np.ndarray:
    raw = np.fromfile(path, "<i4", 256)
    if len(raw) < 256:
        raise InputError(f"{path}: truncated: want a header of {LLMC_HEADER_BYTES} bytes, got {path.stat().st_size}")
    magic, version, count = raw[:3].tolist()
    if (magic, version) not in LLMC_FORMATS:
        known = " or ".join(f"{m} version {v}" for m, v in LLMC_FORMATS)
        raise InputError(f"{path}: not an llm.c token file: want magic {known}, got {magic} version {version}")
    dtype = LLMC_FORMATS[magic, version]
    want, got = LLMC_HEADER_BYTES + count * dtype.itemsize, path.stat().st_size
    if count < 1 or want != got:
        raise InputError(f"{path}: its header says {count:,} tokens, so {want:,} bytes, but it has {got:,}")
    return np.memmap(path, dtype, "r", LLMC_HEADER_BYTES)
