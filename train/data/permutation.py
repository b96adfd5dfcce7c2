"""A seeded permutation of [0, n) that is computed for single numbers, without a table, the same on every
machine.

Four rounds of a Feistel network over 2k bits whose size is at most 4n; a number that leaves [0, n) is
permuted again until it is inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite
domains").
"""

import numpy as np

ROUNDS = 4


def scramble(numbers: np.ndarray, seed: int) -> np.ndarray:
    """uint64 hash of each number under a seed: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = numbers.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF_FFFF_FFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def permute(numbers: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 images of `numbers` (int64, in [0, n)) under the permutation of this seed and epoch."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    key = int(scramble(np.array([epoch]), seed)[0]) & 0x7FFF_FFFF_FFFF
    images = numbers.astype(np.uint64)
    outside = np.ones(len(images), bool)
    while outside.any():
        images[outside] = _feistel(images[outside], half, key)
        outside = images >= np.uint64(n)
    return images.astype(np.int64)


def _feistel(numbers: np.ndarray, half: int, key: int) -> np.ndarray:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = numbers >> shift, numbers & mask
    for turn in range(ROUNDS):
        left, right = right, left ^ (scramble(right, key + turn) & mask)
    return left << shift | right
