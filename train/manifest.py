"""A checkpoint's table of contents: which files there are, and which tensors are cut into which pieces.

    {"format": 2,
     "files":   {"model-00000.safetensors": {"bytes": 4096, "sha256": "..."}, ..., "trainer.json": {...}},
     "tensors": {"model": {"norm.weight": {"dtype": "F32", "shape": [32], "pieces": [[0, 0], [1, 16]]}, ...}, ...}}

A piece is [rank, first element]; it ends where the next begins, and lies under the tensor's name in the file of that
part and rank. File names follow from numbers, so that none can lead elsewhere.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotplate.train.tensor_files import DTYPES, NAMES, Fact, Layout

FORMAT = 2
PARTS = ("model", "optimizer", "state")
TRAINER = "trainer.json"
JSON_BYTES = 1 << 26  # of the longest table that is read
RANKS = 100_000
_SHARD = re.compile(r"(model|optimizer|state)-[0-9]{5}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def file_name(part: str, rank: int) -> str:
    """model-00003.safetensors."""
    return f"{part}-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint: (rank, first element) of each of its pieces, in order."""

    layout: Layout
    pieces: tuple[tuple[int, int], ...]

    def spans(self) -> list[tuple[int, int, int]]:
        """(rank, first element, end) of each piece."""
        if not self.pieces:
            return []
        starts = [start for _, start in self.pieces] + [math.prod(self.layout.shape)]
        return [(rank, *span) for (rank, _), span in zip(self.pieces, itertools.pairwise(starts), strict=True)]


@dataclass(frozen=True)
class Manifest:
    """Files by name, and tensors by part and name."""

    files: dict[str, Fact]
    tensors: dict[str, dict[str, Entry]]

    def to_json(self) -> dict[str, Any]:
        tensors = {
            part: {
                name: {
                    "dtype": NAMES[entry.layout.dtype],
                    "shape": list(entry.layout.shape),
                    "pieces": [list(piece) for piece in entry.pieces],
                }
                for name, entry in entries.items()
            }
            for part, entries in self.tensors.items()
        }
        return {"format": FORMAT, "files": {n: asdict(f) for n, f in self.files.items()}, "tensors": tensors}

    @staticmethod
    def from_json(value: Any) -> "Manifest":
        """ValueError for anything that `to_json` could not have made."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            found = value.get("format", 1) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"want a manifest of format {FORMAT}, got {found}")
        _want(value.keys() == {"format", "files", "tensors"}, "entries format, files, tensors", sorted(value))
        files, tensors = value["files"], value["tensors"]
        _want(isinstance(files, dict) and TRAINER in files, f"files with {TRAINER}", files)
        _want(isinstance(tensors, dict) and set(tensors) == set(PARTS), f"tensors of {PARTS}", tensors)
        manifest = Manifest(
            {name: _fact(name, fact) for name, fact in files.items()},
            {part: {n: _entry(n, e) for n, e in _table(part, tensors[part]).items()} for part in PARTS},
        )
        manifest._check_sizes()
        return manifest

    @staticmethod
    def join(shards: "Sequence[Shard]", trainer: Fact) -> "Manifest":
        """One manifest from what every rank has written. ValueError when pieces overlap or leave a gap."""
        files = {name: fact for shard in shards for name, fact in shard.files.items()} | {TRAINER: trainer}
        tensors: dict[str, dict[str, Entry]] = {}
        for part in PARTS:
            found: dict[str, list[tuple[int, int, int, Layout]]] = {}
            for rank, shard in enumerate(shards):
                for name, (layout, start, count) in shard.pieces.get(part, {}).items():
                    found.setdefault(name, []).append((start, rank, count, layout))
            tensors[part] = {name: _joined(name, sorted(found[name], key=lambda x: x[:2])) for name in sorted(found)}
        return Manifest(files, tensors)

    def _check_sizes(self) -> None:
        """Every piece has a file, and the pieces in a file are no larger than it."""
        needed = dict.fromkeys(self.files, 0)
        for part, entries in self.tensors.items():
            for name, entry in entries.items():
                for rank, start, end in entry.spans():
                    file = file_name(part, rank)
                    _want(file in needed, f"a file for {part} {name}", file)
                    needed[file] += (end - start) * entry.layout.dtype.itemsize
        for file, size in needed.items():
            _want(size <= self.files[file].bytes, f"tensors that fit into {file}", size)


@dataclass(frozen=True)
class Shard:
    """What one rank has written: files, and per part and tensor (layout of the whole, first element, count)."""

    files: dict[str, Fact]
    pieces: dict[str, dict[str, tuple[Layout, int, int]]]

    def to_json(self) -> dict[str, Any]:
        pieces = {
            part: {n: [NAMES[x.dtype], list(x.shape), start, count] for n, (x, start, count) in found.items()}
            for part, found in self.pieces.items()
        }
        return {"files": {name: asdict(fact) for name, fact in self.files.items()}, "pieces": pieces}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Shard":
        """From another rank of this run, which is trusted."""
        pieces = {
            part: {n: (Layout(DTYPES[d], tuple(shape)), start, count) for n, (d, shape, start, count) in found.items()}
            for part, found in value["pieces"].items()
        }
        return Shard({name: Fact(**fact) for name, fact in value["files"].items()}, pieces)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a small JSON file. ValueError for anything else; OSError where there is no file."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        text = file.read(JSON_BYTES + 1)
    if len(text) > JSON_BYTES:
        raise ValueError(f"more than {JSON_BYTES:,} bytes of JSON")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"want a JSON object, got {type(value).__name__}")
    return value


def _want(holds: bool, want: str, got: object) -> None:
    if not holds:
        raise ValueError(f"want {want}, got {str(got)[:80]!r}")


def _natural(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _table(part: str, value: Any) -> dict[str, Any]:
    _want(isinstance(value, dict), f"a table of tensors for {part}", value)
    return value


def _fact(name: str, value: Any) -> Fact:
    _want(name == TRAINER or _SHARD.fullmatch(name) is not None, "names of a checkpoint's files", name)
    _want(isinstance(value, dict) and value.keys() == {"bytes", "sha256"}, f"bytes and sha256 of {name}", value)
    _want(_natural(value["bytes"], 1 << 62), f"the bytes of {name}", value["bytes"])
    digest = value["sha256"]
    _want(isinstance(digest, str) and _SHA256.fullmatch(digest) is not None, f"the sha256 of {name}", digest)
    return Fact(value["bytes"], digest)


def _entry(name: str, value: Any) -> Entry:
    want = {"dtype", "shape", "pieces"}
    _want(isinstance(value, dict) and value.keys() == want, f"dtype, shape and pieces of {name}", value)
    dtype, shape, pieces = value["dtype"], value["shape"], value["pieces"]
    _want(isinstance(dtype, str) and dtype in DTYPES, f"a dtype of {name} among {sorted(DTYPES)}", dtype)
    _want(
        isinstance(shape, list) and len(shape) <= 8 and all(_natural(n, 1 << 40) for n in shape),
        f"a shape of {name}",
        shape,
    )
    _want(math.prod(shape) < 1 << 60, f"a size of {name} below 2^60", shape)
    _want(isinstance(pieces, list), f"pieces of {name}", pieces)
    for piece in pieces:
        holds = (
            isinstance(piece, list) and len(piece) == 2 and _natural(piece[0], RANKS) and _natural(piece[1], 1 << 60)
        )
        _want(holds, f"pieces [rank, start] of {name}", piece)
    starts = [start for _, start in pieces]
    whole = bool(starts) and starts[0] == 0 and all(a < b for a, b in itertools.pairwise([*starts, math.prod(shape)]))
    _want(whole or (not starts and math.prod(shape) == 0), f"pieces of {name} in order that cover it", pieces)
    return Entry(Layout(DTYPES[dtype], tuple(shape)), tuple((rank, start) for rank, start in pieces))


def _joined(name: str, found: list[tuple[int, int, int, Layout]]) -> Entry:
    layout, end = found[0][3], 0
    for start, _, count, other in found:
        _want(start == end and other == layout, f"pieces of {name} that meet, at {end} of {layout}", (start, other))
        end += count
    _want(end == math.prod(layout.shape), f"all {math.prod(layout.shape)} elements of {name}", end)
    return Entry(layout, tuple((rank, start) for start, rank, count, _ in found if count))
