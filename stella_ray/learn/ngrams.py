"""How much of one text stands in another, by the short strings of characters that they share."""

from __future__ import annotations

import unicodedata

import numpy as np

from stella_ray.learn.shuffle import hashes

CHARACTERS = 5
"""Of a string that is compared: Chinese words have two, so five are seldom alike by chance."""

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no position is lost modulo 2**64


def plain(text: str) -> str:
    """The text as it is compared: NFKC, small letters, spaces left out."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str, characters: int = CHARACTERS) -> np.ndarray:
    """Hashes of all strings of so many characters in `plain(text)`, sorted, each once, uint64.

    A shorter text is one string by itself; an empty one has none.
    """
    codes = np.frombuffer(plain(text).encode("utf-32-le", "surrogatepass"), np.uint32)
    count = len(codes) - characters + 1
    if count < 1:
        characters, count = len(codes), min(1, len(codes))
    total = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        mixed = hashes(codes, characters)
        for place in range(characters):
            total = total * np.uint64(_FACTOR) + mixed[place : place + count]
    return np.unique(total)


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the shorter text's strings that stand in the other too, 0 to 1.

    1 for a text and its beginning, where the Jaccard index would be small.

    Args:
        a: `shingles` of a text.
        b: of the other.
    """
    least = min(len(a), len(b))
    return len(np.intersect1d(a, b, assume_unique=True)) / least if least else 0.0
