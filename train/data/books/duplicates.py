"""Which documents say the same: equal words, and nearly equal sets of word runs by MinHash.

Broder 1997, On the resemblance and containment of documents; bands of a signature as in Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, section 3.4. Signatures and the index are datasketch's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hotplate.train.data.books.words import ngrams, word_numbers
from hotplate.train.errors import InputError

CHUNK = 1 << 13  # word runs hashed at a time: 8,192 x 128 uint32 stay in the processor's cache


@dataclass(frozen=True, kw_only=True)
class DuplicateConfig:
    """When two documents count as the same."""

    similarity: float = 0.6
    """Jaccard similarity of the sets of word runs, as signatures estimate it, from which documents are duplicates."""
    run: int = 5
    """Words in a run."""
    permutations: int = 128
    """Numbers in a signature; the estimate's standard error is at most 0.5 / sqrt(permutations)."""
    seed: int = 1
    """Of the signatures."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.similarity <= 1 or self.run < 1 or self.permutations < 16:
            raise InputError(
                f"--duplicates: want 0.1 <= similarity <= 1, run >= 1 and permutations >= 16, got {self.similarity}, "
                f"{self.run} and {self.permutations}"
            )


def check_datasketch() -> None:
    """InputError when the package is missing."""
    try:
        import datasketch  # noqa: F401
    except ImportError as error:
        raise InputError("finding near duplicates needs datasketch: pip install 'hotplate[books]'") from error


def signature(words: list[str], config: DuplicateConfig) -> np.ndarray:
    """uint32 [permutations]: the least permuted hash over the document's runs of words.

    A document shorter than a run is one run.
    """
    from datasketch import MinHash

    numbers = word_numbers(words)
    runs = np.unique(ngrams(numbers, min(config.run, max(1, len(words)))) >> np.uint64(32))
    made = MinHash(config.permutations, config.seed, hashfunc=int, scheme="affine32")
    for start in range(0, len(runs), CHUNK):
        made.update_batch(runs[start : start + CHUNK].tolist())
    return made.hashvalues


def near_duplicates(signatures: list[np.ndarray], config: DuplicateConfig) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, in order, whose signatures agree in at least `similarity` of their places.

    Candidates share a band of the signature, so a pair just above the threshold can be missed; no pair below it is
    reported.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(config.similarity, config.permutations, weights=(0.2, 0.8))  # candidates are checked below
    pairs = []
    permutations = MinHash(config.permutations, config.seed, scheme="affine32").permutations
    for number, values in enumerate(signatures):
        one = MinHash(seed=config.seed, hashvalues=values, permutations=permutations, scheme="affine32")
        for other in sorted(index.query(one)):
            if np.count_nonzero(signatures[other] == values) >= config.similarity * config.permutations:
                pairs.append((other, number))
        index.insert(number, one)
    return sorted(pairs)


def drop_neighbours(order: Iterable[int], pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Dropped document -> the kept one that it repeats, when documents are taken in `order` and each is kept unless it
    is paired with one already kept.

    So no two kept documents are a pair, and each dropped one is paired with the kept one that came first.
    """
    neighbours: dict[int, list[int]] = {}
    for one, other in pairs:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    place: dict[int, int] = {}  # of the kept documents
    dropped = {}
    for at, number in enumerate(order):
        kept = [other for other in neighbours.get(number, []) if other in place]
        if kept:
            dropped[number] = min(kept, key=place.__getitem__)
        else:
            place[number] = at
    return dropped
