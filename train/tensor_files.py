"""Safetensors files of a checkpoint: whole tensors and pieces of them, hashed while they are written.

A piece is a run of elements of a tensor in row-major order: the shards of every engine are pieces.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

CHUNK = 1 << 24  # bytes that are written and hashed at a time
HEADER_BYTES = 1 << 26  # a header names tensors; more is not ours
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a tensor: `data`, the elements from `start` on of the whole, which has `shape`."""

    data: Tensor
    shape: tuple[int, ...]
    start: int = 0

    @staticmethod
    def whole(tensor: Tensor) -> "Piece":
        return Piece(tensor, tuple(tensor.shape))

    @property
    def stored(self) -> "Layout":
        """How it lies in a file: a whole tensor in its shape, a part of one flat."""
        count = self.data.numel()
        return Layout(self.data.dtype, self.shape if count == math.prod(self.shape) else (count,))


@dataclass(frozen=True)
class Layout:
    """Element type and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Fact:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


def write(path: Path, layouts: Mapping[str, Layout], read: Callable[[str], Tensor]) -> Fact:
    """A new file of the tensors that `read` gives, one at a time; on the disk when this returns.

    OSError where it cannot be written, or exists.
    """
    names = sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name))  # so that all are aligned
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        layout = layouts[name]
        span = [offset, offset + layout.bytes]
        header[name] = {"dtype": NAMES[layout.dtype], "shape": list(layout.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        head = len(text).to_bytes(8, "little") + text
        digest.update(head)
        file.write(head)
        for name in names:
            array = read(name).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            data = memoryview(array.data)
            for begin in range(0, len(data), CHUNK):
                chunk = data[begin : begin + CHUNK]
                file.write(chunk)
                digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Fact(len(head) + offset, digest.hexdigest())


def fact(path: Path) -> Fact:
    """Size and hash of a file as it is. OSError where it is missing, a link, or no file."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Fact(os.fstat(file.fileno()).st_size, digest)


class Reader:
    """The tensors of one file. ValueError for a file that is not safetensors or has an outrageous header."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > min(HEADER_BYTES, path.stat().st_size):
            raise ValueError(f"not a safetensors file: its header would have {size:,} bytes")
        try:
            self._file = safetensors.safe_open(path, "pt")
            self._names = set(self._file.keys())
        except safetensors.SafetensorError as error:
            raise ValueError(f"not a safetensors file: {error}") from error

    def get(self, name: str, layout: Layout) -> Tensor:
        """The tensor, mapped from the file. ValueError when there is none of that layout."""
        if name not in self._names:
            raise ValueError(f"has no tensor {name}")
        tensor = self._file.get_tensor(name)
        if tensor.dtype != layout.dtype or tuple(tensor.shape) != layout.shape:
            found = Layout(tensor.dtype, tuple(tensor.shape))
            raise ValueError(f"want {name} as {layout}, got {found}")
        return tensor
