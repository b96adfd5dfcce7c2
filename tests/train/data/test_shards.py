import resource
import struct
import zlib

import numpy as np
import pytest

from hotplate.train.data.shards import HEADER, Shard, ShardWriter, write_shard
from hotplate.train.errors import InputError

DOCUMENTS = [np.array([5, 6, 7]), np.array([8]), np.array([9, 10])]
BODY = [2, 5, 6, 7, 2, 8, 2, 9, 10, 2]


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "s.tokens", DOCUMENTS, vocab=100, eod=2, tokenizer_sha256="ab" * 32)


@pytest.mark.parametrize(("vocab", "dtype"), [(100, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_round_trip(tmp_path, vocab, dtype):
    path = tmp_path / "s.tokens"
    write_shard(path, DOCUMENTS, vocab=vocab, eod=2, tokenizer_sha256="ab" * 32)
    shard = Shard.open(path, "full")
    assert shard.body.dtype == dtype and shard.body.tolist() == BODY
    assert shard.offsets.dtype == np.int64 and shard.offsets.tolist() == [0, 4, 6, 9]
    header = shard.header
    assert (header.vocab, header.eod, header.documents, header.tokens) == (vocab, 2, 3, 10)
    assert header.tokenizer_sha256 == "ab" * 32
    assert path.stat().st_size == header.file_bytes
    assert [p.name for p in tmp_path.iterdir()] == ["s.tokens"]


def test_same_content_same_file(tmp_path):
    for name in "ab":
        write_shard(tmp_path / name, DOCUMENTS, vocab=100, eod=2, tokenizer_sha256="ab" * 32)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _with_header(raw: bytes, **changes) -> bytes:
    """`raw` with header fields replaced and the checksum made right again."""
    names = [
        "magic",
        "version",
        "width",
        "size",
        "tokens",
        "documents",
        "vocab",
        "eod",
        "tok",
        "body",
        "index",
    ]
    fields = dict(zip(names, HEADER.unpack(raw[: HEADER.size]), strict=False)) | changes
    packed = HEADER.pack(*fields.values(), 0)[:-4]
    return packed + struct.pack("<I", zlib.crc32(packed)) + raw[HEADER.size :]


DAMAGE = {
    "empty": (lambda raw: b"", r"is empty \(0 bytes\)"),
    "magic": (
        lambda raw: b"x" + raw[1:],
        r"not a token shard: want it to start with b'hotplate', got b'xotplate'",
    ),
    "short header": (lambda raw: raw[:50], "truncated: want a header of 192 bytes, got 50"),
    "endianness": (lambda raw: raw[:8] + b"\0\0\0\1" + raw[12:], "written big-endian"),
    "version": (lambda raw: _with_header(raw, version=7), "shard version 7, this hotplate reads 1"),
    "checksum": (lambda raw: raw[:100] + b"!" + raw[101:], "damaged header: CRC-32 0x"),
    "width": (lambda raw: _with_header(raw, width=4), "contradictory header"),
    "eod": (lambda raw: _with_header(raw, eod=100), "contradictory header"),
    "truncated": (
        lambda raw: raw[:-8],
        "truncated: 10 tokens of 2 bytes and 3 documents want 248 bytes, got 240",
    ),
    "odd": (lambda raw: raw[:-1], "truncated: .* got 247"),
    "longer": (lambda raw: raw + b"\0", "too long: .* got 249"),
    "count": (lambda raw: _with_header(raw, tokens=20), "truncated: 20 tokens"),
    "index order": (
        lambda raw: raw[:-24] + struct.pack("<QQQ", 6, 4, 9),
        r"entry 2 \(4\) must exceed entry 1 \(6\)",
    ),
    "index end": (lambda raw: raw[:-8] + struct.pack("<Q", 99), "want it to run from 0 to 9, got 0 to 99"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("verify", ["header", "full"])
def test_damage_is_refused(shard, kind, verify):
    damage, message = DAMAGE[kind]
    shard.path.write_bytes(damage(shard.path.read_bytes()))
    with pytest.raises(InputError, match=rf"s\.tokens: .*{message}"):
        Shard.open(shard.path, verify)


@pytest.mark.parametrize(("place", "part"), [(-40, "body"), (-16, "index")])
def test_full_verification_finds_changed_content(shard, place, part):
    raw = bytearray(shard.path.read_bytes())
    raw[place] ^= 1
    shard.path.write_bytes(raw)
    Shard.open(shard.path, "header")
    with pytest.raises(InputError, match=rf"s\.tokens: damaged {part}: "):
        Shard.open(shard.path, "full")


def test_full_verification_checks_ids(shard):
    shard.path.write_bytes(_with_header(shard.path.read_bytes(), vocab=9))
    with pytest.raises(InputError, match=r"s\.tokens: id 9 at offset 7 is outside the vocabulary of 9"):
        Shard.open(shard.path, "full")


def test_full_verification_checks_document_ends(shard):
    shard.path.write_bytes(_with_header(shard.path.read_bytes(), eod=3))
    with pytest.raises(InputError, match=r"s\.tokens: want the end-of-document id 3 at offset 0, got 2"):
        Shard.open(shard.path, "full")


def test_missing_file_and_unknown_verification(shard, tmp_path):
    with pytest.raises(InputError, match="none: cannot read the shard: No such file"):
        Shard.open(tmp_path / "none")
    with pytest.raises(ValueError, match='want verify "header" or "full", got "?\'?fast'):
        Shard.open(shard.path, "fast")


@pytest.mark.parametrize("ids", [[1, 100], [1, -1], [1, 2]])
def test_writer_refuses_ids(tmp_path, ids):
    with (
        pytest.raises(InputError, match=rf"document 1: id {ids[1]} at token 1 is outside the vocabulary of 100 or"),
        ShardWriter(tmp_path / "s", vocab=100, eod=2, tokenizer_sha256="ab" * 32) as writer,
    ):
        writer.add(np.array([5]))
        writer.add(np.array(ids))
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path):
    """The largest size a process may write stands in for the end of the disk: a real error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(
                InputError,
                match=r"s: the disk is full: the shard needs at least [\d,]+ bytes, [\d,]+ are free",
            ),
            ShardWriter(tmp_path / "s", vocab=100, eod=2, tokenizer_sha256="ab" * 32) as writer,
        ):
            for _ in range(10):
                writer.add(np.full(50_000, 7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
