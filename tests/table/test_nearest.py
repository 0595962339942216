"""Many queries at once: every vector read, or the index asked."""

from __future__ import annotations

import numpy as np
import pytest

from stella_ray.table import nearest
from stella_ray.table.index import IndexSettings, tidy
from stella_ray.table.nearest import NO_ROW, by_index, exact, fragment_groups, matrix
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import DIM, add, numbered


def filled(docs: VectorTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three fragments; queries, their cosines to all rows, and the rows' addresses."""
    for start in (0, 100, 200):
        add(docs, numbered(100, start))
    rows = docs.dataset.to_table(columns=["vector"], with_row_address=True)
    queries = np.random.default_rng(0).standard_normal((7, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries, queries @ matrix(rows).T, rows["_rowaddr"].to_numpy()


def test_both_ways_find_the_nearest_best_first(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, cosines, addresses = filled(docs)
    order = np.argsort(-cosines, axis=1)[:, :20]
    monkeypatch.setattr(nearest, "QUERIES_AT_ONCE", 3)
    for found, rows in (exact(docs, queries, 20), by_index(docs, queries, 20)):
        assert found == pytest.approx(np.take_along_axis(cosines, order, 1), abs=1e-5)
        assert (rows == addresses[order]).mean() > 0.98  # equal ones may change places
    tidy(docs, IndexSettings(vector="ivf_hnsw_sq", min_rows=1))
    found, _ = by_index(docs, queries, 5)
    assert found == pytest.approx(np.take_along_axis(cosines, order, 1)[:, :5], abs=1e-4)


def test_where_there_are_fewer_rows_the_rest_is_none(docs: VectorTable) -> None:
    queries, _, _ = filled(docs)
    for found, _ in (exact(docs, queries, 301), by_index(docs, queries, 301)):
        assert (found[:, :300] > NO_ROW).all()
        assert (found[:, 300] == NO_ROW).all()


def test_groups_of_fragments_hold_all_rows_once(docs: VectorTable) -> None:
    queries, cosines, _ = filled(docs)
    assert [len(group) for group in fragment_groups(docs, 200)] == [2, 1]
    assert [len(group) for group in fragment_groups(docs, 1)] == [1, 1, 1]
    own = [docs.dataset.get_fragment(number) for number in fragment_groups(docs, 1)[1]]
    found, _ = exact(docs, queries, 1, own)
    assert found[:, 0] == pytest.approx(cosines[:, 100:200].max(1), abs=1e-5)
