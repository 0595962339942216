"""Exact search, and what a ranking is worth: nDCG, recall, MRR, MAP and precision of each query.

The definitions are trec_eval's (through pytrec_eval, which is mteb's judge), but for ties: a
ranking comes in here as an order, settled already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stella_ray.learn.hits import NO_HIT, merged, ranking

QUERIES_AT_ONCE, DOCUMENTS_AT_ONCE = 256, 65_536
"""Of one block of scores: 64 MiB."""


def search(queries: np.ndarray, documents: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` documents nearest to each query, best first, by inner product.

    Equal scores stand in the order of the documents. Memory beside the vectors is a block of scores
    and the hits.

    Args:
        queries: float32 [queries, dim], finite.
        documents: float32 [documents, dim], finite.
        depth: how many at most.

    Returns:
        The documents' numbers, int64 [queries, depth], and their scores, float32 [queries, depth];
        -1 and -inf where there are fewer documents.
    """
    out = np.full((len(queries), depth), NO_HIT)
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(first, first + QUERIES_AT_ONCE)
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            block = documents[start : start + DOCUMENTS_AT_ONCE]
            places = np.arange(start, start + len(block))
            hits = [ranking(row, places, 0, depth) for row in queries[rows] @ block.T]
            out[rows] = merged(out[rows], np.stack(hits))
    return out["place"], out["score"]


def ranking_metrics(
    ranked: np.ndarray, relevance: Sequence[Mapping[int, int]], depths: Sequence[int]
) -> dict[str, np.ndarray]:
    """What each query's ranking is worth, cut at each depth.

    ndcg: the relevance itself is the gain, log2(1 + rank) the discount, and the best order of all
    that is relevant the ideal. recall: the share of the relevant documents that were found. mrr:
    one over the rank of the first. map: precision at each relevant one's rank, summed over those
    found, by the number of all. precision: the share of the k places that are relevant.

    Args:
        ranked: documents' numbers, best first, int64 [queries, depth]; -1 stands for none.
        relevance: of each query's judged documents; 0 and less is irrelevant.
        depths: the k of each metric; the ranking may be shorter.

    Returns:
        By "metric@k", float64 [queries]; 0 for a query without relevant documents.
    """
    deepest = max(depths)
    gains = np.zeros((len(ranked), deepest))
    ideal = np.zeros((len(ranked), deepest))
    count = np.zeros(len(ranked))
    for row, judged in enumerate(relevance):
        own = [max(0, judged.get(int(place), 0)) for place in ranked[row, :deepest]]
        gains[row, : len(own)] = own
        best = sorted((gain for gain in judged.values() if gain > 0), reverse=True)
        ideal[row, : len(best)] = best[:deepest]
        count[row] = len(best)
    found = gains > 0
    ranks = np.arange(1, deepest + 1)
    discount = 1 / np.log2(1 + ranks)
    precision = found.cumsum(1) / ranks
    out: dict[str, np.ndarray] = {}
    for k in depths:
        right = found[:, :k]
        out[f"ndcg@{k}"] = _share(gains[:, :k] @ discount[:k], ideal[:, :k] @ discount[:k])
        out[f"recall@{k}"] = _share(right.sum(1), count)
        out[f"mrr@{k}"] = (right / ranks[:k]).max(1)  # the first one's is the largest
        out[f"map@{k}"] = _share((precision[:, :k] * right).sum(1), count)
        out[f"precision@{k}"] = right.sum(1) / k
    return out


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0))
