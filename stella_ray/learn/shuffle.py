"""Random choices as pure functions of their numbers: nothing to save, nothing to restore.

NumPy's own generators may change their streams between versions (NEP 19), and a permutation of all
rows would be held in memory for each epoch; here any place of it is computed by itself.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

SORTED_UP_TO = 1 << 12
"""Rows up to which a permutation is made by sorting hashes: any order may come of it, where the
network below knows few orders of few rows."""

ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """A 64-bit key from numbers and words, the same in every process and version."""
    words = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def hashes(numbers: np.ndarray, key: int) -> np.ndarray:
    """64 random-looking bits for each number under a key (splitmix64's finaliser), uint64."""
    with np.errstate(over="ignore"):
        x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def shares(numbers: np.ndarray, key: int) -> np.ndarray:
    """A number in [0, 1) for each number under a key, float64."""
    return np.ldexp((hashes(numbers, key) >> np.uint64(11)).astype(np.float64), -53)


def permuted(places: np.ndarray, count: int, key: int) -> np.ndarray:
    """What stands at these places of a permutation of 0 … count - 1, int64.

    Above `SORTED_UP_TO` a Feistel network over the next power of four permutes; numbers that land
    at `count` or above go through it again until they land below (cycle walking), so that each
    place costs the same however many rows there are.

    Args:
        places: int, each in [0, count).
        count: of all places.
        key: of the permutation.
    """
    if count <= SORTED_UP_TO:
        return np.asarray(_small(count, key)[places])
    half = np.uint64(((count - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << int(half)) - 1)
    out = places.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & low
        for turn in range(ROUNDS):
            left, right = right, left ^ (hashes(right, key_of(key, turn)) & low)
        out[todo] = left << half | right
        todo = todo[out[todo] >= count]
    return out.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _small(count: int, key: int) -> np.ndarray:
    return np.argsort(hashes(np.arange(count), key), kind="stable")
