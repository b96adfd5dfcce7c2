"""File lists: which documents of a source are in which split, with a hash of each text.

A folder holds `SPLIT.list` per split. A line is the SHA-256 of the document's UTF-8 text, a tab, and its identifier
as a JSON string; lines are sorted by identifier.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hotplate.train.data.documents import Document, Skipped
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

SUFFIX = ".list"
LINE = re.compile(r"([0-9a-f]{64})\t(.+)")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")


class Source(Protocol):
    """Where documents come from."""

    def read(self, skipped: Skipped) -> Iterator[Document]: ...

    def describe(self) -> dict: ...


@dataclass(frozen=True)
class FileLists:
    """`entries`: identifier -> (split, SHA-256 of the text, hex)."""

    entries: Mapping[str, tuple[str, str]]

    @property
    def fingerprint(self) -> str:
        """SHA-256, hex, over every identifier, its split and its text: the content hash of the whole set."""
        return hashlib.sha256(json.dumps(sorted(self.entries.items())).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """One file per split into `folder`, which exists."""
        lines: dict[str, list[str]] = {}
        for identifier, (split, digest) in sorted(self.entries.items()):
            lines.setdefault(split, []).append(f"{digest}\t{json.dumps(identifier)}\n")
        for split, content in lines.items():
            (folder / f"{split}{SUFFIX}").write_text("".join(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "FileLists":
        """Raises InputError: no lists, a bad line, a document in two lists."""
        paths = sorted(folder.glob(f"*{SUFFIX}"))
        if not paths:
            raise InputError(f"{folder}: no *{SUFFIX} files there; make them with: hotplate data books")
        entries: dict[str, tuple[str, str]] = {}
        for path in paths:
            for number, (identifier, digest) in enumerate(_lines(path), 1):
                if identifier in entries:
                    raise InputError(
                        f"{path}, line {number}: {identifier!r} is also in {entries[identifier][0]}{SUFFIX}"
                    )
                entries[identifier] = (path.name.removesuffix(SUFFIX), digest)
        return cls(entries)


@dataclass(frozen=True)
class ListedSource:
    """The documents of `source` that `lists` names, in the source's order.

    Reading raises InputError for a text that is not the listed one, and for a listed document that is not there.
    """

    source: Source
    lists: FileLists

    def read(self, skipped: Skipped) -> Iterator[Document]:
        missing = dict(self.lists.entries)
        for document in self.source.read(skipped):
            if document.identifier not in missing:
                continue
            split, digest = missing.pop(document.identifier)
            if text_digest(document.text) != digest:
                raise InputError(
                    f"{document.identifier}: not the text that {split}{SUFFIX} lists: SHA-256 "
                    f"{text_digest(document.text)}, listed {digest}; make the lists again"
                )
            yield document
        if missing:
            first = min(missing)
            raise InputError(
                f"{self.source.describe()}: {len(missing)} listed documents are not there, first {first!r} of "
                f"{missing[first][0]}{SUFFIX}; give the source that the lists were made from"
            )

    def describe(self) -> dict:
        return {**self.source.describe(), "file_lists": self.lists.fingerprint}


def text_digest(text: str) -> str:
    """SHA-256, hex, of the UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_split_name(name: str, where: str) -> None:
    """InputError unless `name` can be a split's file name."""
    if not SPLIT_NAME.fullmatch(name):
        raise InputError(f"{where}: split name {name!r}: want letters, digits, - and _, at most 41")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the file list: {error}") from error
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        found = LINE.fullmatch(line)
        try:
            identifier = parse_json(found[2]) if found else None
        except ValueError:
            identifier = None
        if found is None or not isinstance(identifier, str):
            raise InputError(f"{path}, line {number}: want a SHA-256, a tab and an identifier in quotes, got {line!r}")
        yield identifier, found[1]
