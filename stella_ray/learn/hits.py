"""The best candidates of each query, found part by part and merged."""

from __future__ import annotations

import numpy as np

HIT = np.dtype([("score", np.float32), ("part", np.int32), ("place", np.int64)])
"""A candidate: its score, the part of the corpus that has its text, and its number in the corpus.
Fewer than were asked for are filled up with NO_HIT."""

NO_HIT = np.array((-np.inf, -1, -1), HIT)


def ranking(scores: np.ndarray, places: np.ndarray, part: int, depth: int) -> np.ndarray:
    """The `depth` best, best first; equal scores in the order of places, however they came.

    Args:
        scores: float32 [candidates].
        places: int64 [candidates].
        part: of all of them.
        depth: how many at most.

    Returns:
        HIT [depth].
    """
    if len(scores) > depth:
        least = np.partition(scores, -depth)[-depth]
        inside = np.flatnonzero(scores >= least)
        scores, places = scores[inside], places[inside]
    order = np.lexsort((places, -scores))[:depth]
    out = np.full(depth, NO_HIT)
    out["score"][: len(order)] = scores[order]
    out["part"][: len(order)] = part
    out["place"][: len(order)] = places[order]
    return out


def merged(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The best of two parts' hits, HIT [queries, depth] each and together."""
    both = np.concatenate([a, b], axis=1)
    order = np.lexsort((both["place"], -both["score"]), axis=1)[:, : a.shape[1]]
    return np.asarray(np.take_along_axis(both, order, axis=1))
