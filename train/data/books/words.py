"""A document's words, its runs of words as numbers, and its keys for finding duplicates."""

import hashlib
import re
import unicodedata
import zlib

import numpy as np

WORD = re.compile(r"\w+")
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it vanishes modulo 2^64


def folded_words(text: str) -> list[str]:
    """The words of `text`: runs of letters, digits and underscores after NFKC and case folding."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def word_numbers(words: list[str]) -> np.ndarray:
    """uint64 [N]: CRC-32 of each word's UTF-8 bytes; the same in every process and on every machine."""
    numbers = {word: zlib.crc32(word.encode()) for word in set(words)}
    return np.fromiter((numbers[word] for word in words), np.uint64, len(words))


def ngrams(numbers: np.ndarray, n: int) -> np.ndarray:
    """uint64 [N - n + 1]: a hash of each run of n of the N `numbers`: sum over i of BASE^(n - i) * numbers[i], modulo
    2^64.
    """
    count = len(numbers) - n + 1
    total = np.zeros(max(0, count), np.uint64)
    for offset in range(n if count > 0 else 0):
        total = total * BASE + numbers[offset : offset + count]
    return total


def content_key(words: list[str]) -> str:
    """SHA-256, hex, of the words joined by spaces: equal for texts that differ in case, layout and punctuation only."""
    return hashlib.sha256(" ".join(words).encode()).hexdigest()
