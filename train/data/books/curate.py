"""Books to file lists: measure in parallel, filter, drop duplicates over the whole set, then split."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hotplate.train.data.books.duplicates import (
    DuplicateConfig,
    check_datasketch,
    drop_neighbours,
    near_duplicates,
    signature,
)
from hotplate.train.data.books.filters import BookFilters, Measures, measure
from hotplate.train.data.books.language import check_languages
from hotplate.train.data.books.words import content_key, folded_words
from hotplate.train.data.corpora import CORPORA
from hotplate.train.data.documents import Document, FolderSource, OnError, Skipped
from hotplate.train.data.encoding import SPLITS
from hotplate.train.data.file_lists import FileLists, Source, check_split_name, text_digest
from hotplate.train.data.prepare import Survey, assign_splits, order_key
from hotplate.train.data.processes import in_order
from hotplate.train.data.publish import exclusive, published
from hotplate.train.errors import InputError

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class BooksConfig:
    """Which books become a data set, and in which split."""

    source: str
    """A file or folder of books (.txt .md .py .jsonl .jsonl.zst .parquet), or a built-in corpus."""
    out: str
    """The folder of file lists to make; it must not exist."""
    held_out: dict[str, str] = field(default_factory=dict)
    """Splits of chosen books: NAME PATTERN ...; the shell pattern is matched with the path. No filter applies."""
    validation: float = 0.05
    """Share of the bytes, by whole books."""
    test: float = 0.05
    """Share of the bytes, by whole books: the split from the training distribution."""
    seed: int = 0
    """Chooses the books of validation and test."""
    filters: BookFilters = BookFilters()
    duplicates: DuplicateConfig = DuplicateConfig()
    text_field: str = "text"
    """The field of .jsonl and .parquet records that holds the text."""
    separator: str | None = None
    """Text that divides .txt, .md and .py files into several books."""
    on_error: OnError = "raise"
    """Whether invalid UTF-8 or JSON ends the work or is skipped and counted."""
    workers: int | None = None
    """Processes; by default one per available core."""

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise InputError(f"--validation {self.validation} and --test {self.test} must be >= 0 and sum to below 1")
        for name in self.held_out:
            check_split_name(name, "--held-out")
            if name in SPLITS:
                raise InputError(f"--held-out {name}: the name of a split that is drawn by chance; choose another")


class Profile(NamedTuple):
    """All that is kept of a book after it was read."""

    identifier: str
    bytes: int
    digest: str  # SHA-256 of the text
    content: str  # the same for books of the same words
    signature: np.ndarray
    measures: Measures


def curate(config: BooksConfig) -> dict:
    """Write the file lists and report.json to `config.out`, which appears complete or not at all; give the report.

    The same books and config give the same lists, for any number of workers.
    Raises InputError: nothing readable, a pattern that matches nothing, too few books left, a missing package.
    """
    check_datasketch()
    check_languages(config.filters.languages)
    folder = Path(config.out)
    with exclusive(folder):
        if folder.exists():
            raise InputError(f"{folder} exists already; remove it or choose another --out")
        source: Source = CORPORA.get(config.source) or FolderSource(
            Path(config.source), config.text_field, config.separator, config.on_error
        )
        skipped = Skipped()
        work = partial(_profiles, config.filters.languages, config.duplicates)
        books = list(in_order(work, source.read(skipped), config.workers or len(os.sched_getaffinity(0))))
        with published(folder) as unfinished:
            lists, report = decide(config, books)
            lists.write(unfinished)
            report |= {"source": source.describe(), "skipped": asdict(skipped), "config": asdict(config)}
            (unfinished / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def decide(config: BooksConfig, books: list[Profile]) -> tuple[FileLists, dict]:
    """The split of every kept book, and what became of the others."""
    chosen = _held_out(config.held_out, books)
    failed = [[] if name else config.filters.failures(book.measures) for book, name in zip(books, chosen, strict=True)]
    passed = [number for number, reasons in enumerate(failed) if not reasons]

    # Of books that say the same, a held-out one is kept before others, then the longest, then the first by name.
    order = sorted(passed, key=lambda n: (not chosen[n], -books[n].measures.characters, books[n].identifier))
    copies = drop_neighbours(order, _equal_pairs([(n, books[n].content) for n in order]))
    unique = [number for number in order if number not in copies]
    pairs = near_duplicates([books[number].signature for number in unique], config.duplicates)
    near = drop_neighbours(unique, [(unique[one], unique[other]) for one, other in pairs])

    kept = [number for number in passed if number not in copies and number not in near]
    split_of = {number: name for number in kept if (name := chosen[number])}
    drawn = [number for number in kept if number not in split_of]
    if not drawn:
        raise InputError(f"{config.source}: of {len(books)} books none is left to train on: {_reasons(failed)}")
    survey = Survey(
        [order_key(books[number].identifier, config.seed) for number in drawn],
        [books[number].bytes for number in drawn],
        Skipped(),
        [books[number].identifier for number in drawn],
    )
    split_of |= dict(zip(drawn, assign_splits(survey, config.validation, config.test), strict=True))
    lists = FileLists({books[n].identifier: (split, books[n].digest) for n, split in split_of.items()})

    dropped = [
        {"identifier": books[n].identifier, "reasons": reasons, "measures": books[n].measures.to_dict()}
        for n, reasons in enumerate(failed)
        if reasons
    ]
    for reason, repeats in (("exact_duplicate", copies), ("near_duplicate", near)):
        dropped += [
            {"identifier": books[n].identifier, "reasons": [reason], "of": books[of].identifier}
            for n, of in sorted(repeats.items())
        ]
    reasons_of = {n: reasons for n, reasons in enumerate(failed) if reasons}
    reasons_of |= {n: ["exact_duplicate"] for n in copies} | {n: ["near_duplicate"] for n in near}
    report = {
        "fingerprint": lists.fingerprint,
        "documents": len(books),
        "bytes": sum(book.bytes for book in books),
        "splits": _totals((split, books[n].bytes) for n, split in split_of.items()),
        "dropped_first_by": _totals((reasons[0], books[n].bytes) for n, reasons in reasons_of.items()),
        "failed_at_all": _totals((reason, books[n].bytes) for n, reasons in reasons_of.items() for reason in reasons),
        "dropped": dropped,
    }
    return lists, report


def _profiles(languages: tuple[str, ...], duplicates: DuplicateConfig, group: list[Document]) -> list[Profile]:
    profiles = []
    for identifier, text in group:
        words = folded_words(text)
        profiles.append(
            Profile(
                identifier,
                len(text.encode()),
                text_digest(text),
                content_key(words),
                signature(words, duplicates),
                measure(text, words, languages),
            )
        )
    return profiles


def _held_out(patterns: dict[str, str], books: list[Profile]) -> list[str]:
    """The held-out split of each book, empty for most."""
    found = []
    for book in books:
        names = [name for name, pattern in patterns.items() if fnmatchcase(book.identifier, pattern)]
        if len(names) > 1:
            raise InputError(f"--held-out: {book.identifier!r} matches the patterns of {' and '.join(names)}")
        found.append(names[0] if names else "")
    for name, pattern in patterns.items():
        if name not in found:
            raise InputError(f"--held-out {name}: no book's path matches {pattern!r}")
    return found


def _equal_pairs(keys: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """(first, later) for each document whose key has come before."""
    first: dict[str, int] = {}
    for number, key in keys:
        if first.setdefault(key, number) != number:
            yield first[key], number


def _totals(amounts: Iterable[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Name -> documents and bytes, the most documents first."""
    documents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, size in amounts:
        documents[name] += 1
        sizes[name] += size
    ordered = sorted(documents, key=lambda name: (-documents[name], name))
    return {name: {"documents": documents[name], "bytes": sizes[name]} for name in ordered}


def _reasons(failed: list[list[str]]) -> str:
    counts = Counter(reasons[0] for reasons in failed if reasons)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "all are held out"
