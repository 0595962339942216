"""Which candidates may serve as hard negatives of a pair, and which of them are taken.

Many of a query's best hits answer it, though no pair says so. The filters, in the order in which
they are asked, the cheap ones first: 1. the rank window; 2. a score near the positive's or above
it; 3. a text that is the query or a known positive of it; 4. a near-duplicate of a positive; 5. a
text that was taken already.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from stella_ray.errors import SettingsError
from stella_ray.learn.examples import text_key
from stella_ray.learn.ngrams import containment, shingles
from stella_ray.learn.shuffle import hashes, key_of

FILTER_VERSION = 1
"""Of what the filters do; a change of their code that changes their answers counts it up."""

EXAMINED = 4
"""Candidates whose texts are read for each negative that is wanted: most pass."""

Order = Literal["random", "first"]


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Which candidates are no negatives."""

    rank_from: int = 11
    """First rank that may serve, from 1: the very first hits of a large corpus are nearly all
    answers that nobody marked."""
    rank_to: int = 210
    """Last rank that may serve, and how deep is searched: FlagEmbedding's window of 200."""
    ceiling: float = 0.95
    """Largest vector score of a negative, as a share of the positive's: NV-Retriever's (arXiv
    2407.15831); where the positive's is negative, as much below it."""
    bm25_ceiling: float = 0.95
    """The same for BM25's scores."""
    near_duplicate: float = 0.8
    """Largest share of the shorter text's strings of five characters that a negative and a positive
    of its query may have in common."""
    positive_within: int = 0
    """Mine nothing for a pair whose positive ranks behind this: a bad pair, most likely. 0: mine
    for all; stays within rank_to."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if not 1 <= self.rank_from <= self.rank_to:
            raise SettingsError(
                f"rank_from {self.rank_from} and rank_to {self.rank_to} are no window; expected"
                " 1 <= rank_from <= rank_to"
            )
        for name in ("ceiling", "bm25_ceiling", "near_duplicate"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"{name} {value} can't be; expected a number above 0")
        if not 0 <= self.positive_within <= self.rank_to:
            raise SettingsError(
                f"positive_within {self.positive_within} is beyond rank_to {self.rank_to}, where"
                " nothing is searched; lower the one or raise the other"
            )

    @property
    def version(self) -> str:
        """What every negative carries: the filters' version and a digest of these settings."""
        told = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{FILTER_VERSION}-{hashlib.blake2b(told.encode(), digest_size=4).hexdigest()}"


class Candidate(NamedTuple):
    """A hit with its text."""

    source: str
    id: str
    text: str
    rank: int
    score: float
    positive_score: float


def highest(positive_score: float, share: float) -> float:
    """The score above which a candidate counts as an answer: the positive's less 1 - share of it.

    With a negative score, `share` times it would be above it.
    """
    return positive_score - (1 - share) * abs(positive_score)


def shortlist(
    hits: np.ndarray,
    positive_score: float,
    share: float,
    settings: FilterSettings,
    counts: Counter[str],
) -> np.ndarray:
    """Ranks of the hits that their scores alone don't rule out, in their order.

    Args:
        hits: of one query, HIT [depth].
        positive_score: the positive's, by the same measure.
        share: the ceiling.
        settings: the other filters.
        counts: what each filter took is added here.

    Returns:
        Ranks from 1, int64.
    """
    scores = hits["score"][hits["place"] >= 0]
    counts["hits"] += len(scores)
    before = int((scores > positive_score).sum())  # equal: the positive itself, or a copy of it
    if settings.positive_within and before >= settings.positive_within:
        counts["positive_too_low"] += len(scores)
        return np.empty(0, np.int64)
    ranks = np.arange(settings.rank_from, min(len(scores), settings.rank_to) + 1)
    counts["outside_window"] += len(scores) - len(ranks)
    below = scores[ranks - 1] <= highest(positive_score, share)
    counts["above_ceiling"] += int((~below).sum())
    return ranks[below]


def drawn(ranks: np.ndarray, order: Order, most: int, *parts: int | str) -> np.ndarray:
    """The first `most` of these ranks, or as many by chance; `parts` name the throw of the dice."""
    if order == "random":
        ranks = ranks[np.argsort(hashes(ranks, key_of(*parts)), kind="stable")]
    return ranks[:most]


class Sieve:
    """What may not be taken for one query.

    Args:
        query: its text.
        known: the `text_keys` of all passages that any pair gives as its answer, sorted, int64.
        positives: texts of them, to find near-duplicates by.
        near_duplicate: see `FilterSettings`.
    """

    def __init__(
        self, query: str, known: np.ndarray, positives: Sequence[str], near_duplicate: float
    ) -> None:
        self._own, self._known = {text_key(query), *map(text_key, positives)}, known
        self._taken: set[int] = set()
        self._positives = [shingles(text) for text in positives]
        self._share = near_duplicate

    def fault(self, text: str, *, chosen: bool = False) -> str | None:
        """Why a text can't be a negative, by its filter's name; None where it can.

        Args:
            text: a candidate's.
            chosen: somebody chose it, so that what it shares with a positive is meant.
        """
        key = text_key(text)
        at = np.searchsorted(self._known, key)
        if key in self._own or (at < len(self._known) and self._known[at] == key):
            return "positive_or_query"
        if key in self._taken:
            return "repeated"
        if chosen:
            return None
        own = shingles(text)
        if any(containment(own, other) > self._share for other in self._positives):
            return "near_duplicate"
        return None

    def take(self, text: str) -> None:
        """Never again."""
        self._taken.add(text_key(text))


def picked(
    sieve: Sieve, lists: Sequence[Iterator[Candidate]], count: int, counts: Counter[str]
) -> list[Candidate]:
    """Take `count` candidates, from each list in turn, as far as they go.

    Args:
        sieve: of the query; remembers what is taken.
        lists: each method's candidates in the order in which they are wanted.
        count: in all.
        counts: what each filter took is added here, as METHOD.FILTER.
    """
    taken: list[Candidate] = []
    todo = list(lists)
    while todo and len(taken) < count:
        candidates = todo.pop(0)
        for one in candidates:
            if fault := sieve.fault(one.text):
                counts[f"{one.source}.{fault}"] += 1
                continue
            sieve.take(one.text)
            taken.append(one)
            counts[f"{one.source}.taken"] += 1
            todo.append(candidates)
            break
    return taken
