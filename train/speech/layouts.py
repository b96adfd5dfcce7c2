"""Folders of evaluation pairs, as the published sets are laid out.

* numbered: files sorted by the integer before a separator (`+` for sBLIMP, `_` for sWUGGY and StoryCloze), then by
  name, are right, wrong, right, wrong...; each sub-folder is a category or a speaker, files at the top are one.
* salmon: each sub-folder is a part; the files `*_INDEX_*.wav` of an index, in alphabetical order, are right and wrong.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from hotplate.train.errors import InputError

Layout = Literal["sblimp", "swuggy", "storycloze", "salmon"]
SEPARATORS = {"sblimp": "+", "swuggy": "_", "storycloze": "_"}


class Pair(NamedTuple):
    category: str
    right: Path
    wrong: Path


def read_pairs(folder: Path, layout: Layout) -> list[Pair]:
    """All pairs of a folder. InputError: no wav files, a name without its number, an odd number of files."""
    categories: dict[Path, list[Path]] = defaultdict(list)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pairs")
    for path in sorted(folder.rglob("*.wav")):
        categories[path.parent].append(path)
    if not categories:
        raise InputError(f"{folder}: no .wav files there")
    pairs = []
    for parent, files in sorted(categories.items()):
        name = "all" if parent == folder else parent.relative_to(folder).as_posix()
        found = _salmon(files) if layout == "salmon" else _numbered(files, SEPARATORS[layout])
        pairs += [Pair(name, right, wrong) for right, wrong in found]
    return pairs


def _numbered(files: list[Path], separator: str) -> list[tuple[Path, Path]]:
    def key(path: Path) -> tuple[int, str]:
        head = path.stem.split(separator)[0]
        if not head.isdecimal():
            raise InputError(f"{path}: want a number before {separator!r} in the name; choose another --layout")
        return int(head), path.name

    ordered = sorted(files, key=key)
    if len(ordered) % 2:
        raise InputError(f"{ordered[0].parent}: {len(ordered)} files, want pairs; a file is missing")
    return list(zip(ordered[::2], ordered[1::2], strict=True))


def _salmon(files: list[Path]) -> list[tuple[Path, Path]]:
    by_index: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        matched = re.search(r"_(\d+)_", path.name)
        if matched is None:
            raise InputError(f"{path}: want a name like *_INDEX_*.wav; choose another --layout")
        by_index[int(matched[1])].append(path)
    for index, group in by_index.items():
        if len(group) != 2:
            raise InputError(f"{group[0].parent}: {len(group)} files of index {index}, want two")
    return [(min(group), max(group)) for _, group in sorted(by_index.items())]
