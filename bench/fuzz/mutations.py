"""Damaged and invented files from files that a parser accepts: bytes, pieces, numbers at their limits, and, in text,
other values, keys and nestings."""

import random
import struct

LIMITS = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"Infinity", b"1" * 5000, b"0.0", b"[]", b"{}", b'""', b'"\\ud800"'),
    *(b'"../../etc/passwd"', b'"/etc/passwd"', b'"."', b'"\\u0000"', b"[" * 2000, b'{"a":' * 500, b"\xff\xfe", b"\0"),
    *(b"[[x]]", b"x = 1\n", b"[model]\n", b'extends = "config.toml"\n', b'extends = "/"\n', b"9" * 400, b"1979-05-27"),
    *(b'"__class__"', b"-0", b"\n", b"\t", b"\r\n", b"0" * 64, b'"manifest.json"', b'"' + b"a" * 300 + b'"'),
]


def mutated(seed: bytes, drawn: random.Random) -> bytes:
    """The seed after one to eight changes."""
    content = bytearray(seed)
    for _ in range(1 << drawn.randrange(4)):
        CHANGES[drawn.randrange(len(CHANGES))](content, drawn)
    return bytes(content)


def _place(content: bytearray, drawn: random.Random) -> int:
    return drawn.randrange(len(content) + 1)


def _flip(content: bytearray, drawn: random.Random) -> None:
    if content:
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)


def _byte(content: bytearray, drawn: random.Random) -> None:
    if content:
        content[drawn.randrange(len(content))] = drawn.randrange(256)


def _insert(content: bytearray, drawn: random.Random) -> None:
    at = _place(content, drawn)
    content[at:at] = drawn.randbytes(drawn.randrange(1, 9))


def _remove(content: bytearray, drawn: random.Random) -> None:
    at = _place(content, drawn)
    del content[at : at + drawn.randrange(1, 33)]


def _cut(content: bytearray, drawn: random.Random) -> None:
    del content[_place(content, drawn) :]


def _repeat(content: bytearray, drawn: random.Random) -> None:
    at = _place(content, drawn)
    content[at:at] = content[at : at + drawn.randrange(1, 65)]


def _number(content: bytearray, drawn: random.Random) -> None:
    """A binary number at a limit, in either byte order."""
    form = drawn.choice("<>") + drawn.choice("HIQ")
    at = _place(content, drawn) & ~1
    size = struct.calcsize(form)
    content[at : at + size] = struct.pack(form, drawn.choice(LIMITS) % (1 << 8 * size))


def _word(content: bytearray, drawn: random.Random) -> None:
    at = _place(content, drawn)
    content[at : at + drawn.choice((0, 0, 1, 4))] = drawn.choice(WORDS)


def _value(content: bytearray, drawn: random.Random) -> None:
    """Replace what stands between two separators: a JSON or TOML value, or a key."""
    marks = [at for at, byte in enumerate(content) if byte in b':=,{}[]"\n']
    if len(marks) > 1:
        index = drawn.randrange(len(marks) - 1)
        content[marks[index] + 1 : marks[index + 1]] = drawn.choice(WORDS)


def _swap(content: bytearray, drawn: random.Random) -> None:
    """Two pieces change places."""
    if len(content) > 16:
        size = drawn.randrange(1, 9)
        a, b = sorted(drawn.sample(range(len(content) - 8), 2))
        if a + size <= b:
            content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


CHANGES = (_flip, _byte, _insert, _remove, _cut, _repeat, _number, _word, _value, _value, _swap)
