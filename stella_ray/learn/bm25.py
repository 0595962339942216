"""BM25 over a corpus in parts: each part is scored as if it were indexed with all the others.

A term's share of a score is idf(t) tf / (tf + k1 (1 - b + b |d| / average)), with idf(t) =
ln(1 + (N - n + 0.5) / (n + 0.5)): Lucene's form, without the factor k1 + 1, which changes no order
(Kamphuis et al., ECIR 2020). N, n and the average length are the whole corpus's.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stella_ray.learn.hits import NO_HIT, ranking

K1, B = 1.5, 0.75
"""bm25s's own; the length of a passage says little where all are cut to paragraphs."""

OTHER = 0
"""Stands for every token that no query has: it counts for a document's length alone, so that an
index is no larger than its queries need."""

_RUN = re.compile(r"[a-z0-9]+|(?:[^\W_a-z0-9]\s*)+")

# It calls itself verbose, and speaks through the root's handlers.
logging.getLogger("bm25s").setLevel(logging.WARNING)


def tokens(text: str) -> list[str]:
    """Overlapping pairs of characters, a lone one by itself, words of ASCII letters and digits.

    Width, case and spaces between Chinese characters make no difference; punctuation ends a run.
    """
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if run[0].isascii():
            found.append(run)
        else:
            run = "".join(run.split())
            found += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
    return found


def vocabulary(queries: Iterable[Sequence[str]]) -> dict[str, int]:
    """A number from 1 for each token of these queries."""
    distinct = dict.fromkeys(itertools.chain.from_iterable(queries))
    return {token: number for number, token in enumerate(distinct, 1)}


def numbers(texts: Iterable[str], known: dict[str, int]) -> list[list[int]]:
    """Each text's tokens by their number in the vocabulary, `OTHER` where they have none."""
    return [[known.get(token, OTHER) for token in tokens(text)] for text in texts]


@dataclass(frozen=True)
class Statistics:
    """What BM25 must know of all documents; those of parts add up.

    Attributes:
        documents: how many.
        tokens: in all of them.
        frequencies: documents that hold each token of the vocabulary, int64 [vocabulary + 1].
    """

    documents: int
    tokens: int
    frequencies: np.ndarray

    def __add__(self, other: Statistics) -> Statistics:
        """Of both together."""
        return Statistics(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.frequencies + other.frequencies,
        )

    @property
    def average(self) -> float:
        """Tokens of a document."""
        return self.tokens / self.documents if self.documents else 0.0

    @functools.cached_property
    def idf(self) -> np.ndarray:
        """Each token's, float64 [vocabulary + 1]."""
        n = self.frequencies
        return np.asarray(np.log(1 + (self.documents - n + 0.5) / (n + 0.5)))


def statistics(documents: Sequence[Sequence[int]], size: int) -> Statistics:
    """Count documents, tokens and document frequencies.

    Args:
        documents: each one's token numbers.
        size: of the vocabulary.
    """
    distinct = itertools.chain.from_iterable(map(set, documents))
    frequencies = np.bincount(np.fromiter(distinct, np.int64), minlength=size + 1)
    return Statistics(len(documents), sum(map(len, documents)), frequencies)


class PartIndex:
    """A part of the corpus, indexed by bm25s and scored by the whole corpus's statistics.

    bm25s takes idf and average length from the documents it is given. So it gets a k1 and a b by
    which the part's average stands for the whole's: k1' (1 - b' + b' |d| / part) is k1 (1 - b +
    b |d| / whole); and the scores it stores are multiplied by the two idfs' ratio.

    Args:
        documents: each one's token numbers; not empty.
        whole: the statistics of all parts.
        places: each document's number in the corpus, int64 [documents].
        part: which part this is.
        k1: how slowly a term's repetitions stop to count.
    """

    def __init__(
        self,
        documents: list[list[int]],
        whole: Statistics,
        places: np.ndarray,
        part: int = 0,
        k1: float = K1,
    ) -> None:
        self.places, self.part = places, part
        own = statistics(documents, len(whole.frequencies) - 1)
        steep = k1 * B * (own.average / whole.average if whole.tokens else 1.0)
        k1 = k1 * (1 - B) + steep
        # Sixteen digits, since what the ratio undoes must not be seen in a float32.
        import bm25s  # and scipy with it, which reading settings needn't wait for

        self._index = bm25s.BM25(k1=k1, b=steep / k1, method="lucene", dtype="float64")
        every = {number: number for number in range(len(whole.frequencies))}
        self._index.index((documents, every), create_empty_token=False, show_progress=False)
        stored = self._index.scores
        stored["data"] *= np.repeat(whole.idf / own.idf, np.diff(stored["indptr"]))

    def best(self, query: Sequence[int], depth: int) -> np.ndarray:
        """The best documents that share a token with a query, HIT [depth]."""
        asked = [number for number in query if number != OTHER]
        if not asked:
            return ranking(np.empty(0, np.float32), self.places[:0], self.part, depth)
        scores = self._index.get_scores_from_ids(asked).astype(np.float32)
        found = np.flatnonzero(scores > 0)
        return ranking(scores[found], self.places[found], self.part, depth)


def best_in_part(
    documents: list[list[int]],
    places: np.ndarray,
    part: int,
    whole: Statistics,
    queries: Sequence[Sequence[int]],
    depth: int,
    k1: float = K1,
) -> np.ndarray:
    """The best documents of a part for each query, HIT [queries, depth]."""
    out = np.full((len(queries), depth), NO_HIT)
    if not any(documents):  # punctuation alone
        return out
    index = PartIndex(documents, whole, places, part, k1)
    for number, query in enumerate(queries):
        out[number] = index.best(query, depth)
    return out


def score(query: Sequence[int], document: Sequence[int], whole: Statistics) -> float:
    """One document's score, wherever it stands: what the index would give it."""
    if not whole.tokens:
        return 0.0
    found = Counter(document)
    damping = K1 * (1 - B + B * len(document) / whole.average)
    return float(
        sum(
            whole.idf[number] * found[number] / (found[number] + damping)
            for number in query
            if number != OTHER and number in found
        )
    )
