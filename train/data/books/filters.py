"""What is measured on a document, and which documents are kept.

Shares are of the document's characters that are not white space, unless said otherwise. A word is a run of letters,
digits and underscores of the folded text: NFKC, then lower case in Unicode's sense (`str.casefold`).
"""

import unicodedata
import zlib
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from hotplate.train.data.books.language import language_share
from hotplate.train.data.books.words import ngrams, word_numbers
from hotplate.train.errors import InputError

NGRAM = 4  # words of the n-gram whose repetition is measured


@dataclass(frozen=True, kw_only=True)
class BookFilters:
    """The bounds that a document must keep, in the order in which they are tried."""

    min_characters: int = 20_000
    """Characters, white space included: shorter texts are not books."""
    max_characters: int = 20_000_000
    """Characters: longer texts are collections or dumps."""
    min_words: int = 3_000
    """Words."""
    languages: tuple[str, ...] = ("en",)
    """ISO 639-1 codes that are wanted; empty = every language."""
    min_language_share: float = 0.75
    """Share of 16 samples, spread evenly, whose likeliest language is a wanted one."""
    min_letters: float = 0.85
    """Share of letters and their marks."""
    max_digits: float = 0.08
    """Share of digits and other numerals."""
    max_symbols: float = 0.04
    """Share of symbols and of control, private and unassigned characters; U+FFFD is a symbol."""
    max_white: float = 0.35
    """Share of white space among all characters: tables and drawings have more."""
    min_word_length: float = 3.0
    """Letters and digits per word, mean."""
    max_word_length: float = 8.0
    """Letters and digits per word, mean."""
    max_repeated_lines: float = 0.2
    """Share of the characters of lines that are in lines seen before in the document."""
    max_top_ngram: float = 0.02
    """Share of the words that lie in occurrences of the most frequent run of 4 words."""
    min_compression: float = 0.2
    """zlib's compressed size at level 6 over the UTF-8 size: less is repetition."""
    max_compression: float = 0.6
    """The same: more is noise, encoded data or many scripts."""

    def __post_init__(self) -> None:
        pairs = (
            ("characters", self.min_characters, self.max_characters),
            ("word-length", self.min_word_length, self.max_word_length),
            ("compression", self.min_compression, self.max_compression),
        )
        for name, low, high in pairs:
            if not 0 <= low <= high:
                raise InputError(f"--filters: want 0 <= min-{name} <= max-{name}, got {low} and {high}")

    def failures(self, found: "Measures") -> list[str]:
        """The filters that the document fails, in the order of the fields; empty: it is kept."""
        verdicts = {
            "min_characters": found.characters >= self.min_characters,
            "max_characters": found.characters <= self.max_characters,
            "min_words": found.words >= self.min_words,
            "min_language_share": not self.languages or found.language_share >= self.min_language_share,
            "min_letters": found.letters >= self.min_letters,
            "max_digits": found.digits <= self.max_digits,
            "max_symbols": found.symbols <= self.max_symbols,
            "max_white": found.white <= self.max_white,
            "min_word_length": found.word_length >= self.min_word_length,
            "max_word_length": found.word_length <= self.max_word_length,
            "max_repeated_lines": found.repeated_lines <= self.max_repeated_lines,
            "max_top_ngram": found.top_ngram <= self.max_top_ngram,
            "min_compression": found.compression >= self.min_compression,
            "max_compression": found.compression <= self.max_compression,
        }
        return [name for name, passed in verdicts.items() if not passed]


@dataclass(frozen=True)
class Measures:
    """What the filters look at; see `BookFilters` for the meaning of each."""

    characters: int
    words: int
    language_share: float
    letters: float
    digits: float
    symbols: float
    white: float
    word_length: float
    repeated_lines: float
    top_ngram: float
    compression: float

    def to_dict(self) -> dict[str, float]:
        return {name: value if isinstance(value, int) else round(value, 4) for name, value in asdict(self).items()}


def measure(text: str, words: list[str], languages: tuple[str, ...]) -> Measures:
    """The measures of a document and its folded words. `language_share` is 1 when `languages` is empty.

    `text` has at least one visible character.
    """
    counts = Counter(text)
    classes: Counter[str] = Counter()
    for character, count in counts.items():
        classes["Z" if character.isspace() else unicodedata.category(character)[0]] += count
    visible = max(1, len(text) - classes["Z"])
    raw = text.encode()
    return Measures(
        characters=len(text),
        words=len(words),
        language_share=language_share(text, languages) if languages else 1.0,
        letters=(classes["L"] + classes["M"]) / visible,
        digits=classes["N"] / visible,
        symbols=(classes["S"] + classes["C"]) / visible,
        white=classes["Z"] / len(text),
        word_length=sum(map(len, words)) / max(1, len(words)),
        repeated_lines=repeated_lines(text),
        top_ngram=top_ngram(words),
        compression=len(zlib.compress(raw, 6)) / len(raw),
    )


def repeated_lines(text: str) -> float:
    """Share of the characters of non-empty lines, ends stripped, that are in lines seen before."""
    lines = [line.strip() for line in text.splitlines()]
    total = sum(map(len, lines))
    first = sum(map(len, set(lines)))
    return (total - first) / max(1, total)


def top_ngram(words: list[str]) -> float:
    """Share of the words in occurrences of the most frequent run of `NGRAM` words, 0 where none occurs twice.

    Overlapping occurrences count each: a word repeated throughout gives at most 1.
    """
    if len(words) < NGRAM:
        return 0.0
    most = int(np.unique(ngrams(word_numbers(words), NGRAM), return_counts=True)[1].max())
    return 0.0 if most < 2 else min(1.0, most * NGRAM / len(words))
