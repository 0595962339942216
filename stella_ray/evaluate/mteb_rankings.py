"""What mteb's retrieval found for each query, and what words alone and both together find."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from stella_ray.evaluate.baselines import bm25, fuse
from stella_ray.evaluate.metrics import ranking_metrics
from stella_ray.evaluate.results import TaskResult, Units

DEPTH = 100
"""Of BM25's and of the vectors' ranking, which the hybrid fuses."""

DEPTHS = (1, 3, 5, 10, 100)

PER_QUERY = {
    "ndcg_at_10": "ndcg_cut_10",
    "recall_at_10": "recall_10",
    "map_at_1000": "map_cut_1000",
}
"""Metrics of which each query's value is kept, and pytrec_eval's names for them."""


class Seen:
    """What mteb found for each query of a split: metrics, and the first `DEPTH` documents."""

    def __init__(self, scores: Mapping[str, Mapping[str, float]], results: Any) -> None:
        queries = sorted(scores)
        self.units = {
            ours: Units(names=queries, values=[float(scores[query][name]) for query in queries])
            for ours, name in PER_QUERY.items()
        }
        self.ranked: dict[str, list[str]] = {}
        for query, documents in results.items():
            # trec_eval's own order: equal scores by id, the last first
            best = sorted(documents.items(), key=lambda one: (one[1], one[0]), reverse=True)
            self.ranked[query] = [document for document, _ in best[:DEPTH]]


def watcher(rankings: dict[str, Seen]) -> Callable[..., dict[str, float]]:
    """Look in where mteb asks a task for scores of its own, and make none."""

    def watch(scores: Any, _qrels: Any, results: Any, hf_split: str, **_: Any) -> dict[str, float]:
        rankings[hf_split] = Seen(scores, results)
        return {}

    return watch


def baselines(
    common: Mapping[str, Any],
    data: Any,
    seen: Seen,
    facts: Mapping[str, Any],
    not_itself: bool,
) -> Iterator[TaskResult]:
    """BM25 alone, and fused with the vectors, on the same queries."""
    began = time.monotonic()
    ids = list(data["corpus"]["id"])
    place = {name: i for i, name in enumerate(ids)}
    queries = [(one["id"], one["text"]) for one in data["queries"]]
    texts = [f"{one.get('title') or ''} {one['text']}".strip() for one in data["corpus"]]
    relevance = [
        {place[document]: grade for document, grade in data["relevant_docs"][name].items()}
        for name, _ in queries
    ]
    by_words = bm25([text for _, text in queries], texts, DEPTH)
    by_vectors = np.full((len(queries), DEPTH), -1, np.int64)
    for row, (name, _) in enumerate(queries):
        found = [place[document] for document in seen.ranked[name]]
        by_vectors[row, : len(found)] = found
        if not_itself and name in place:
            others = by_words[row][by_words[row] != place[name]]
            by_words[row] = np.pad(others, (0, DEPTH - len(others)), constant_values=-1)
    for ranking, ranked in (("bm25", by_words), ("hybrid", fuse([by_words, by_vectors], DEPTH))):
        values = {
            name.replace("@", "_at_"): one
            for name, one in ranking_metrics(ranked, relevance, DEPTHS).items()
        }
        yield TaskResult(
            **common,
            ranking=ranking,  # type: ignore[arg-type]
            metrics={name: float(one.mean()) for name, one in values.items()},
            units={
                name: Units(names=[query for query, _ in queries], values=values[name].tolist())
                for name in ("ndcg_at_10", "recall_at_10")
            },
            facts=dict(facts),
            seconds=time.monotonic() - began,
        )
