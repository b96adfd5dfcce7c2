"""Sentences to speak, out of the user's text: chosen by seed, in the same order on every machine."""

import re
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from hotplate.train.data.corpora import CORPORA
from hotplate.train.data.documents import FolderSource, Skipped
from hotplate.train.errors import InputError
from hotplate.train.speech.tales import tales

TALES = "tales"
HELD_OUT = 5  # of this many sentences one is for tests: the same one in every call
SPEAKABLE = re.compile(r"[A-Za-z][A-Za-z ,;:'\-]*[.!?]")


def sentences(text: str, words: tuple[int, int]) -> list[str]:
    """Sentences of letters and plain punctuation with words[0] to words[1] words, in order."""
    flat = " ".join(text.split())
    parts = (part.strip() for part in re.split(r"(?<=[.!?])\s+", flat))
    return [p for p in parts if SPEAKABLE.fullmatch(p) and words[0] <= len(p.split()) <= words[1]]


def documents(source: str) -> Iterator[tuple[str, str]]:
    """(identifier, text) of the template stories (`tales`), a built-in corpus, a file or a folder."""
    if source == TALES:
        yield from tales()
        return
    reader = CORPORA.get(source) or FolderSource(Path(source))
    for document in reader.read(Skipped()):
        yield document.identifier, document.text


def held_out(sentence: str) -> bool:
    """Whether a sentence belongs to the tests: decided by its own letters."""
    return crc32(sentence.encode()) % HELD_OUT == 0


def passages(source: str, length: int, words: tuple[int, int], test: bool) -> list[tuple[str, list[str]]]:
    """(document, `length` sentences that follow one another in it); all held out, or none.

    Sentences in between that are not speakable or of the other part are left out.
    """
    found = []
    for identifier, text in documents(source):
        usable = [s for s in sentences(text, words) if held_out(s) == test]
        groups = (usable[i : i + length] for i in range(0, len(usable) - length + 1, length))
        found += [(identifier, group) for group in groups]
    if not found:
        raise InputError(f"{source}: no {length} sentences of {words[0]} to {words[1]} words in any document")
    return found


def chosen(source: str, length: int, words: tuple[int, int], count: int, seed: int, test: bool):
    """`count` passages (fewer if there are no more), drawn by the seed."""
    all_of_them = passages(source, length, words, test)
    order = np.random.default_rng(seed).permutation(len(all_of_them))
    return [all_of_them[i] for i in order[:count]]
