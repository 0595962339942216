"""Which training texts stand in evaluation sets, word for word or nearly so.

The evaluation side is small, so all of it is indexed: its texts by their key, and the strings of
five characters in them by their hash, each with the texts that hold it. A training text then counts
its own strings' texts, which gives the containment in every evaluation text that shares anything
with it: exactly, where a sketch (MinHash) would miss some, and short texts first of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stella_ray.errors import SettingsError
from stella_ray.learn.ngrams import plain, shingles
from stella_ray.learn.reading import Example

KINDS = (
    *("query_equal", "passage_equal", "pair_equal"),
    *("query_near", "passage_near", "pair_near"),
    *("negative_equal", "negative_near"),
)
"""How a row touches an evaluation set. A side that is equal isn't counted as near; pair_equal: both
sides equal texts of the set; pair_near: both touch it, and not both are equal."""


NEAR_FROM = 10
"""Characters from which texts are compared for nearness by default. From 5 on, 118 of 7,644 medical
questions touched CMRC, DRCD and CAIL, by names and dates that are answers there (2007年8月); from
10 on none did."""


@dataclass(frozen=True)
class Match:
    """What a training text has in common with an evaluation text; `share` is the containment."""

    text: int
    share: float
    equal: bool


def plain_key(text: str) -> int:
    """64 bits of `plain(text)`, by which texts count as equal."""
    own = plain(text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(own, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class OverlapIndex:
    """The evaluation texts, by number: some 20 bytes a character; goes through Ray uncopied.

    Attributes:
        keys: `plain_key` of each text, sorted, uint64 [T].
        key_texts: the text of each key, int32 [T].
        hashes: `shingles` of all texts, sorted, each once, uint64 [U].
        starts: where the texts of each begin in `texts`, int64 [U + 1].
        texts: numbers of texts, int32 [S].
        sizes: shingles of each text, 0 where it is too short to be near anything, int32 [T].
        sets: the evaluation set of each text, int32 [T].
        near_from: characters from which texts are compared for nearness.
    """

    keys: np.ndarray
    key_texts: np.ndarray
    hashes: np.ndarray
    starts: np.ndarray
    texts: np.ndarray
    sizes: np.ndarray
    sets: np.ndarray
    near_from: int

    def matches(self, text: str, threshold: float) -> dict[int, Match]:
        """The best match of a text in each evaluation set that has one.

        Args:
            text: of the training side.
            threshold: least containment that is near.
        """
        found: dict[int, Match] = {}
        key = np.uint64(plain_key(text))
        low, high = (
            np.searchsorted(self.keys, key, "left"),
            np.searchsorted(self.keys, key, "right"),
        )
        for number in self.key_texts[low:high].tolist():
            found[int(self.sets[number])] = Match(number, 1.0, True)
        if len(plain(text)) < self.near_from or not len(self.hashes):
            return found
        own = shingles(text)
        numbers, shared = np.unique(self._holders(own), return_counts=True)
        shares = shared / np.minimum(self.sizes[numbers], len(own))
        near = shares >= threshold
        # The greatest share first; of equal ones, the text that was read first.
        order = np.argsort(-shares[near], kind="stable")
        for number, share in zip(
            numbers[near][order].tolist(), shares[near][order].tolist(), strict=True
        ):
            found.setdefault(int(self.sets[number]), Match(number, share, False))
        return found

    def _holders(self, own: np.ndarray) -> np.ndarray:
        """The texts that hold each of these hashes, one after the other."""
        places = np.minimum(np.searchsorted(self.hashes, own), len(self.hashes) - 1)
        places = places[self.hashes[places] == own]
        first = self.starts[places]
        counts = self.starts[places + 1] - first
        before = np.cumsum(counts) - counts
        rows = np.repeat(first - before, counts) + np.arange(counts.sum())
        return np.asarray(self.texts[rows])


@dataclass
class IndexBuilder:
    """Takes evaluation texts one by one; a text that a set has already is passed over."""

    most_characters: int
    near_from: int = NEAR_FROM
    characters: int = 0
    _keys: list[int] = field(default_factory=list)
    _sets: list[int] = field(default_factory=list)
    _shingles: list[np.ndarray] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def add(self, text: str, number: int) -> bool:
        """Add a text of evaluation set `number`; whether it is new there.

        Raises:
            SettingsError: the texts are more than the memory is meant for.
        """
        key = plain_key(text)
        if (number, key) in self._seen:
            return False
        long = len(plain(text))
        self.characters += long
        if self.characters > self.most_characters:
            raise SettingsError(
                f"the evaluation texts have more than max_characters {self.most_characters:,}"
                " characters; check sets one after the other, name only the columns that matter"
                " (--against_columns), or raise --max_characters (some 60 bytes each while the"
                " index is built, 20 in every node's object store)"
            )
        self._seen.add((number, key))
        self._keys.append(key)
        self._sets.append(number)
        none = np.empty(0, np.uint64)
        self._shingles.append(shingles(text) if long >= self.near_from else none)
        return True

    def build(self) -> OverlapIndex:
        """The index of all that was added."""
        keys = np.array(self._keys, np.uint64)
        by_key = np.argsort(keys, kind="stable")
        sizes = np.array([len(own) for own in self._shingles], np.int32)
        flat = np.concatenate([np.empty(0, np.uint64), *self._shingles])
        self._shingles.clear()
        order = np.argsort(flat, kind="stable")
        flat = flat[order]
        new = np.ones(len(flat), bool)
        new[1:] = flat[1:] != flat[:-1]
        starts = np.flatnonzero(new)
        return OverlapIndex(
            keys=keys[by_key],
            key_texts=by_key.astype(np.int32),
            hashes=flat[starts],
            starts=np.append(starts, len(flat)).astype(np.int64),
            texts=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order],
            sizes=sizes,
            sets=np.array(self._sets, np.int32),
            near_from=self.near_from,
        )


@dataclass(frozen=True)
class Touch:
    """How a training row touches an evaluation set.

    Attributes:
        set: number of the evaluation set.
        kinds: of `KINDS`.
        matches: (kind of a side, the training text, what it matches).
    """

    set: int
    kinds: tuple[str, ...]
    matches: tuple[tuple[str, str, Match], ...]


def touches(example: Example, index: OverlapIndex, threshold: float) -> Iterator[Touch]:
    """Yield how a training row touches each evaluation set that it touches."""
    found: dict[int, dict[str, tuple[str, Match]]] = {}
    texts = [("query", example.query), ("passage", example.passage)]
    for side, text in [*texts, *(("negative", text) for text in example.negatives)]:
        for number, match in index.matches(text, threshold).items():
            sides = found.setdefault(number, {})
            kind = f"{side}_{'equal' if match.equal else 'near'}"
            sides.setdefault(kind, (text, match))  # of several negatives the first of a kind
    for number, sides in sorted(found.items()):
        yield Touch(
            number,
            tuple(kind for kind in KINDS if kind in _with_pair(sides)),
            tuple((kind, *sides[kind]) for kind in KINDS if kind in sides),
        )


def _with_pair(sides: dict[str, Any]) -> set[str]:
    both = [[kind for kind in sides if kind.startswith(side)] for side in ("query", "passage")]
    if not all(both):
        return set(sides)
    equal = all(kinds[0].endswith("equal") for kinds in both)
    return {*sides, "pair_equal" if equal else "pair_near"}
