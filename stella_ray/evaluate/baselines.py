"""What an encoder must be compared with: words alone (BM25), and both fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stella_ray.learn.bm25 import OTHER, best_in_part, statistics, vocabulary

RRF = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""

K1 = 1.2
"""What most tables of BM25 are made with; b is 0.75. (Mining uses bm25s's own 1.5.)"""


def pairs(text: str) -> list[str]:
    """Every two neighbouring characters, whatever they are.

    Unlike mining's tokens, letters and digits aren't words here: of names such as 张x1, which court
    decisions are full of, more is found that way (CAIL: 64.4 against 61.4 at rank 1).
    """
    return [text[at : at + 2] for at in range(len(text) - 1)] or [text]


def bm25(queries: Sequence[str], documents: Sequence[str], depth: int) -> np.ndarray:
    """Rank documents for each query by BM25 over pairs of characters.

    Args:
        queries: texts, without an encoder's prefixes.
        documents: texts, likewise.
        depth: how many at most.

    Returns:
        Documents' numbers, best first, equal scores in the order of documents, int64 [queries,
        depth]; -1 where fewer share a pair with the query.
    """
    cut = [pairs(query) for query in queries]
    known = vocabulary(cut)
    asked = [[known[pair] for pair in query] for query in cut]
    indexed = [[known.get(pair, OTHER) for pair in pairs(text)] for text in documents]
    whole = statistics(indexed, len(known))
    places = np.arange(len(indexed), dtype=np.int64)
    return np.asarray(best_in_part(indexed, places, 0, whole, asked, depth, K1)["place"])


def fuse(rankings: Sequence[np.ndarray], depth: int) -> np.ndarray:
    """Fuse rankings by reciprocal rank: a document's score is the sum of 1 / (60 + its rank).

    Args:
        rankings: documents' numbers, best first, int64 [queries, any depth] each; -1 stands for
            none. What stands in one alone has that one's share.
        depth: how many to keep at most.

    Returns:
        int64 [queries, depth], equal scores in the order of documents; -1 where there are fewer.
    """
    out = np.full((len(rankings[0]), depth), -1, np.int64)
    for row in range(len(out)):
        places = np.concatenate([ranked[row] for ranked in rankings])
        shares = np.concatenate(
            [1 / (RRF + np.arange(1, ranked.shape[1] + 1)) for ranked in rankings]
        )
        documents, of = np.unique(places[places >= 0], return_inverse=True)
        scores = np.bincount(of, shares[places >= 0], minlength=len(documents))
        best = documents[np.argsort(-scores, kind="stable")][:depth]
        out[row, : len(best)] = best
    return out
