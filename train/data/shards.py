"""The token shard: one file of documents as token ids, memory-mapped, self-describing and hashed.

Layout, all little-endian: a header of 192 bytes, the body D d1.. D d2.. D ... D (uint16 where the vocabulary
has at most 65,536 ids, else uint32), zeros up to a multiple of 8 bytes, then the index (uint64 [N + 1]): the
place in the body of the D before each document, and of the last D. N is the number of documents.
"""

import errno
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hotplate.train.errors import InputError

MAGIC = b"hotplate"
VERSION = 1
HEADER = struct.Struct("<8sIIQQQQQ32s32s32s36xI")  # 192 bytes; the last field is the CRC-32 of those before
CHUNK = 1 << 24  # bytes hashed at a time
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Verify = Literal["header", "full"]


@dataclass(frozen=True)
class ShardHeader:
    """What the 192 bytes say. Hashes are SHA-256, hex; `body_sha256` covers the body and its padding."""

    token_bytes: int  # 2 or 4
    tokens: int  # entries of the body
    documents: int
    vocab: int
    eod: int
    tokenizer_sha256: str
    body_sha256: str
    index_sha256: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"<u{self.token_bytes}")

    @property
    def index_at(self) -> int:
        return HEADER.size + _padded(self.tokens * self.token_bytes)

    @property
    def file_bytes(self) -> int:
        return self.index_at + 8 * (self.documents + 1)

    def pack(self) -> bytes:
        sizes = (HEADER.size, self.tokens, self.documents, self.vocab, self.eod)
        hashes = map(bytes.fromhex, (self.tokenizer_sha256, self.body_sha256, self.index_sha256))
        raw = HEADER.pack(MAGIC, VERSION, self.token_bytes, *sizes, *hashes, 0)[:-4]
        return raw + struct.pack("<I", zlib.crc32(raw))

    @classmethod
    def unpack(cls, raw: bytes, path: Path) -> "ShardHeader":
        """Raises InputError naming `path`, what was expected and what is there."""
        if len(raw) == 0:
            raise InputError(f"{path}: the shard is empty (0 bytes); prepare the data again")
        if raw[:8] != MAGIC:
            raise InputError(f"{path}: not a token shard: want it to start with {MAGIC!r}, got {raw[:8]!r}")
        if len(raw) < HEADER.size:
            raise InputError(f"{path}: truncated: want a header of {HEADER.size} bytes, got {len(raw)}")
        _, version, width, size, tokens, documents, vocab, eod, *hashes, crc = HEADER.unpack(raw)
        if version == int.from_bytes(VERSION.to_bytes(4, "big"), "little"):
            raise InputError(f"{path}: written big-endian; shards are little-endian, prepare the data again")
        if version != VERSION:
            raise InputError(f"{path}: shard version {version}, this hotplate reads {VERSION}; prepare it again")
        if crc != zlib.crc32(raw[:-4]):
            raise InputError(f"{path}: damaged header: CRC-32 {zlib.crc32(raw[:-4]):#010x}, recorded {crc:#010x}")
        if size != HEADER.size or width != _width(vocab) or eod >= vocab or tokens < documents + 1:
            raise InputError(
                f"{path}: contradictory header: {size=} (want {HEADER.size}), {width=}, {vocab=}, {eod=}, "
                f"{tokens=}, {documents=}"
            )
        return cls(width, tokens, documents, vocab, eod, *(digest.hex() for digest in hashes))


class Shard:
    """An open shard. `body`: uint16 or uint32 memory map; `offsets`: int64 [N + 1]; `header`; `path`."""

    def __init__(self, path: Path, header: ShardHeader, header_sha256: str):
        self.path, self.header, self.header_sha256 = path, header, header_sha256
        self.body = np.memmap(path, header.dtype, "r", HEADER.size, (header.tokens,))
        index = np.memmap(path, "<u8", "r", header.index_at, (header.documents + 1,))
        self.offsets = np.array(index, np.int64)

    @classmethod
    def open(cls, path: str | Path, verify: Verify = "header") -> "Shard":
        """Map a shard; "header" checks sizes, header and index order, "full" also every hash and every id.

        Raises InputError naming the file, what was expected and what is there.
        """
        if verify not in ("header", "full"):
            raise ValueError(f'Shard.open: want verify "header" or "full", got {verify!r}')
        path = Path(path)
        try:
            with open(path, "rb") as file:
                raw = file.read(HEADER.size)
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise InputError(f"{path}: cannot read the shard: {error.strerror}") from error
        header = ShardHeader.unpack(raw, path)
        if size != header.file_bytes:
            state = "truncated" if size < header.file_bytes else "too long"
            raise InputError(
                f"{path}: {state}: {header.tokens:,} tokens of {header.token_bytes} bytes and "
                f"{header.documents:,} "
                f"documents want {header.file_bytes:,} bytes, got {size:,}; prepare the data again"
            )
        shard = cls(path, header, hashlib.sha256(raw).hexdigest())
        shard._check_index()
        if verify == "full":
            shard._check_body()
        return shard

    def _check_index(self) -> None:
        steps = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != self.header.tokens - 1:
            raise InputError(
                f"{self.path}: damaged index: want it to run from 0 to {self.header.tokens - 1}, "
                f"got {self.offsets[0]} to {self.offsets[-1]}"
            )
        if steps.size and steps.min() < 1:
            at = int(steps.argmin())
            raise InputError(
                f"{self.path}: damaged index: entry {at + 1} ({self.offsets[at + 1]}) must exceed entry "
                f"{at} ({self.offsets[at]})"
            )

    def _check_body(self) -> None:
        header = self.header
        with open(self.path, "rb") as file:
            file.seek(HEADER.size)
            body = _hash_of(file, header.index_at - HEADER.size)
            index = _hash_of(file, 8 * (header.documents + 1))
        for part, want, got in (("body", header.body_sha256, body), ("index", header.index_sha256, index)):
            if want != got:
                raise InputError(f"{self.path}: damaged {part}: SHA-256 {got}, recorded {want}; prepare the data again")
        for start in range(0, header.tokens, CHUNK):
            check_ids(self.body[start : start + CHUNK], header.vocab, self.path, start)
        if not (self.body[self.offsets] == header.eod).all():
            at = int(self.offsets[int((self.body[self.offsets] != header.eod).argmax())])
            raise InputError(
                f"{self.path}: want the end-of-document id {header.eod} at offset {at}, got {self.body[at]}"
            )


def check_ids(ids: np.ndarray, vocab: int, path: Path, start: int) -> None:
    """InputError with file, offset and id unless all are below `vocab`; `start` is the offset of `ids[0]`."""
    if ids.size and ids.max() >= vocab:
        at = int((ids >= vocab).argmax())
        raise InputError(f"{path}: id {int(ids[at])} at offset {start + at} is outside the vocabulary of {vocab:,}")


class ShardWriter:
    """Writes a shard document by document; the file appears under its name only when complete.

    Use as a context manager: leaving it normally finishes the file, an exception removes what was written.
    Raises InputError for an id outside the vocabulary, D inside a document, or a full disk.
    """

    def __init__(self, path: str | Path, *, vocab: int, eod: int, tokenizer_sha256: str):
        self.path = Path(path)
        self._vocab, self._eod, self._tokenizer = vocab, eod, tokenizer_sha256
        self._dtype = np.dtype(f"<u{_width(vocab)}")
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._offsets = [0]
        self._body_hash = hashlib.sha256()
        self._written = 0  # bytes, header included
        self._file = open(self._temporary, "xb")  # noqa: SIM115 - closed by close() or abort()
        self._write(bytes(HEADER.size))
        self._write_body(np.array([eod], self._dtype).tobytes())

    @property
    def tokens(self) -> int:
        return self._offsets[-1] + 1

    @property
    def documents(self) -> int:
        return len(self._offsets) - 1

    def add(self, ids: np.ndarray) -> None:
        """Append one document: its ids, any integer dtype, without D."""
        if ids.size and (ids.min() < 0 or ids.max() >= self._vocab or (ids == self._eod).any()):
            at = int(((ids < 0) | (ids >= self._vocab) | (ids == self._eod)).argmax())
            raise InputError(
                f"document {self.documents}: id {int(ids[at])} at token {at} is outside the vocabulary of "
                f"{self._vocab:,} or is the end-of-document id {self._eod}"
            )
        self._write_body(np.append(ids, self._eod).astype(self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + ids.size + 1)

    def close(self) -> ShardHeader:
        """Write index and header, flush to the disk, and give the file its name."""
        body_bytes = self.tokens * self._dtype.itemsize
        self._write_body(bytes(_padded(body_bytes) - body_bytes))
        index = np.array(self._offsets, "<u8").tobytes()
        self._write(index)
        header = ShardHeader(
            self._dtype.itemsize,
            self.tokens,
            self.documents,
            self._vocab,
            self._eod,
            self._tokenizer,
            self._body_hash.hexdigest(),
            hashlib.sha256(index).hexdigest(),
        )
        try:
            self._file.seek(0)
            self._file.write(header.pack())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            self._fail(error)
        return header

    def abort(self) -> None:
        """Remove the unfinished file."""
        # A buffered write that failed on a full disk fails again on close; the file goes either way.
        try:
            self._file.close()
        except OSError:
            pass
        finally:
            self._temporary.unlink(missing_ok=True)

    def _write_body(self, raw: bytes) -> None:
        self._body_hash.update(raw)
        self._write(raw)

    def _write(self, raw: bytes) -> None:
        self._written += len(raw)
        try:
            self._file.write(raw)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.abort()
        if error.errno not in NO_SPACE:
            raise error
        free = shutil.disk_usage(self.path.parent).free
        raise InputError(
            f"{self.path}: the disk is full: the shard needs at least {self._written:,} bytes, {free:,} "
            "are free; "
            "make room or choose another folder"
        ) from error

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def write_shard(
    path: str | Path, documents: Iterable[np.ndarray], *, vocab: int, eod: int, tokenizer_sha256: str
) -> Shard:
    """Write `documents` (ids without D) as one shard and open it."""
    with ShardWriter(path, vocab=vocab, eod=eod, tokenizer_sha256=tokenizer_sha256) as writer:
        for ids in documents:
            writer.add(ids)
    return Shard.open(path)


def _width(vocab: int) -> int:
    return 2 if vocab <= 1 << 16 else 4


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _hash_of(file, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0:
        chunk = file.read(min(size, CHUNK))
        if not chunk:
            break  # shorter than announced: the digest differs, and the caller says so
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
