"""Ranking metrics against pytrec_eval and by hand; exact search against sorting everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.evaluate import metrics
from stella_ray.evaluate.metrics import ranking_metrics, search

DEPTHS = (1, 3, 5, 10, 12)
JUDGED = st.dictionaries(st.integers(0, 14), st.integers(-1, 3), max_size=8)
RUN = st.lists(st.integers(0, 14), unique=True, min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(RUN, JUDGED), min_size=1, max_size=5))
def test_metrics_are_pytrec_evals(queries: list[tuple[list[int], dict[int, int]]]) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    width = max(len(run) for run, _ in queries)
    ranked = np.array([run + [-1] * (width - len(run)) for run, _ in queries])
    found = ranking_metrics(ranked, [judged for _, judged in queries], DEPTHS)
    wanted = judged_by(pytrec_eval, queries)
    for row, (run, judged) in enumerate(queries):
        if not judged:  # pytrec_eval leaves such a query out
            assert all(one[row] == 0 for one in found.values())
            continue
        own = wanted[str(row)]
        for k in DEPTHS:
            names = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P"}
            for ours, theirs in names.items():
                assert found[f"{ours}@{k}"][row] == pytest.approx(own[f"{theirs}_{k}"], abs=1e-9)
            first = next((i for i, at in enumerate(run[:k], 1) if judged.get(at, 0) > 0), None)
            assert found[f"mrr@{k}"][row] == pytest.approx(1 / first if first else 0, abs=1e-9)
        assert found["mrr@12"][row] == pytest.approx(
            own["recip_rank"], abs=1e-9
        )  # no run is longer


def judged_by(pytrec_eval: Any, queries: list[tuple[list[int], dict[int, int]]]) -> Any:
    """trec_eval orders a run by score, so the scores fall with the ranks."""
    cut = ",".join(map(str, DEPTHS))
    wanted = {f"{name}.{cut}" for name in ("ndcg_cut", "recall", "map_cut", "P")} | {"recip_rank"}
    qrels = {
        str(i): {str(d): g for d, g in judged.items()} for i, (_, judged) in enumerate(queries)
    }
    runs = {
        str(i): {str(d): 100.0 - place for place, d in enumerate(run)}
        for i, (run, _) in enumerate(queries)
    }
    return pytrec_eval.RelevanceEvaluator(
        {name: judged for name, judged in qrels.items() if judged}, wanted
    ).evaluate(runs)


def test_metrics_by_hand() -> None:
    found = ranking_metrics(np.array([[7, 3, 9], [1, 2, -1]]), [{3: 1, 9: 1, 5: 1}, {8: 1}], [2, 3])
    assert found["recall@2"].tolist() == [pytest.approx(1 / 3), 0]
    assert found["mrr@3"].tolist() == [0.5, 0]
    assert found["map@3"].tolist() == [pytest.approx((1 / 2 + 2 / 3) / 3), 0]
    assert found["precision@3"].tolist() == [pytest.approx(2 / 3), 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_search_is_a_stable_sort_of_all_scores(seed: int, depth: int) -> None:
    dice = np.random.default_rng(seed)
    queries = dice.integers(-2, 3, (5, 3)).astype(np.float32)  # whole numbers: many ties
    documents = dice.integers(-2, 3, (7, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "QUERIES_AT_ONCE", 2)
        patch.setattr(metrics, "DOCUMENTS_AT_ONCE", 3)
        places, scores = search(queries, documents, depth)
    product = queries @ documents.T
    wanted = np.argsort(-product, axis=1, kind="stable")[:, :depth]
    assert (places[:, :7] == wanted).all()
    assert (scores[:, :7] == np.take_along_axis(product, wanted, axis=1)).all()
    assert (places[:, 7:] == -1).all()
