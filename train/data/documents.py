"""Documents out of files: .txt, .md and .py are one document each; .jsonl, .jsonl.zst and .parquet one per
record.

A document is (identifier, text); the identifier is the path inside the source, with the record number if any.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import zstandard

from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

TEXT_SUFFIXES = (".txt", ".md", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".jsonl.zst", ".parquet")

CHUNK = 1 << 20  # compressed bytes read at a time

OnError = Literal["raise", "skip"]


class Document(NamedTuple):
    identifier: str
    text: str


@dataclass
class Skipped:
    """What a pass over a source left out."""

    empty: int = 0
    invalid: int = 0
    examples: list[str] = field(default_factory=list)  # the first few reasons


@dataclass(frozen=True)
class FolderSource:
    """The documents of a file or of a folder (with its subfolders), in sorted order.

    Iterating raises InputError naming the file and the byte offset or line of invalid UTF-8 or JSON, unless
    `on_error` is "skip". Hidden files and files of other kinds are not read.
    """

    path: Path
    text_field: str = "text"
    separator: str | None = None  # divides text files into documents
    on_error: OnError = "raise"

    def files(self) -> list[Path]:
        """The readable files. Raises InputError if there are none."""
        if not self.path.exists():
            raise InputError(f"{self.path}: no such file or folder, nor a built-in corpus")
        readable = sorted(self.found())
        if not readable:
            raise InputError(f"{self.path}: no {', '.join(SUFFIXES)} files there")
        return readable

    def found(self) -> Iterator[Path]:
        """Every readable file, in no particular order."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        for path in files:
            if path.name.endswith(SUFFIXES) and path.is_file() and not self._is_hidden(path):
                yield path

    def read(self, skipped: Skipped) -> Iterator[Document]:
        """Yield every non-empty document; count the others in `skipped`."""
        for path in self.files():
            for document in self._read_file(path, skipped):
                if document.text.strip():
                    yield document
                else:
                    skipped.empty += 1

    def describe(self) -> dict:
        return {"path": str(self.path), "text_field": self.text_field, "separator": self.separator}

    def _is_hidden(self, path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(self.path).parts)

    def _read_file(self, path: Path, skipped: Skipped) -> Iterator[Document]:
        name = path.name if path == self.path else path.relative_to(self.path).as_posix()
        try:
            if path.name.endswith(TEXT_SUFFIXES):
                yield from self._read_text(path, name, skipped)
            elif path.name.endswith(".parquet"):
                yield from self._read_parquet(path, name, skipped)
            else:
                yield from self._read_lines(path, name, skipped)
        except OSError as error:
            raise InputError(f"{path}: cannot read: {error.strerror or error}") from error
        except zstandard.ZstdError as error:
            raise InputError(f"{path}: damaged zstd stream: {error}") from error

    def _reject(self, reason: str, skipped: Skipped) -> None:
        if self.on_error == "raise":
            raise InputError(f"{reason}; repair it, or pass --on-error skip")
        skipped.invalid += 1
        if len(skipped.examples) < 10:
            skipped.examples.append(reason)

    def _read_text(self, path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            self._reject(f"{path}: invalid UTF-8 at byte {error.start}: {error.reason}", skipped)
            return
        if self.separator is None:
            yield Document(name, text)
        else:
            for number, part in enumerate(text.split(self.separator), 1):
                yield Document(f"{name}:{number}", part)

    def _read_lines(self, path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
        with open(path, "rb") as raw:
            lines = _zstd_lines(raw, path) if path.suffix == ".zst" else raw
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = parse_json(line.decode())
                except UnicodeDecodeError as error:
                    self._reject(f"{path}, line {number}: invalid UTF-8 at byte {error.start}", skipped)
                    continue
                except ValueError as error:
                    place = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                    self._reject(f"{path}, line {number}: invalid JSON: {place}", skipped)
                    continue
                text = self._text_of(record, f"{path}, line {number}", skipped)
                if text is not None:
                    yield Document(f"{name}:{number}", text)

    def _read_parquet(self, path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise InputError(f"{path}: reading .parquet needs pyarrow: pip install 'hotplate[parquet]'") from error
        try:
            file = pyarrow.parquet.ParquetFile(path)
            if self.text_field not in file.schema_arrow.names:
                fields = ", ".join(file.schema_arrow.names)
                raise InputError(f"{path}: no column {self.text_field!r}; choose --text-field from {fields}")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[self.text_field]):
                for record in batch.to_pylist():
                    number += 1
                    text = self._text_of(record, f"{path}, row {number}", skipped)
                    if text is not None:
                        yield Document(f"{name}:{number}", text)
        except pyarrow.ArrowException as error:
            raise InputError(f"{path}: damaged parquet file: {error}") from error

    def _text_of(self, record, where: str, skipped: Skipped) -> str | None:
        text = record.get(self.text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            self._reject(f"{where}: no text in field {self.text_field!r}; choose --text-field from {fields}", skipped)
            return None
        if not _is_encodable(text):
            self._reject(f"{where}: the text holds a lone surrogate", skipped)
            return None
        return text


def _zstd_lines(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of the frames of a zstd file. Raises InputError if the last frame is cut short."""
    decoder, finished, pending = zstandard.ZstdDecompressor().decompressobj(), True, b""
    while chunk := raw.read(CHUNK):
        while chunk:
            *lines, pending = (pending + decoder.decompress(chunk)).split(b"\n")
            yield from lines
            finished, chunk = decoder.eof, decoder.unused_data
            if finished:
                decoder = zstandard.ZstdDecompressor().decompressobj()
    if not finished:
        raise InputError(f"{path}: truncated: the zstd stream ends inside a frame; copy the file again")
    yield pending


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
