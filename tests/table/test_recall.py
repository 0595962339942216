"""What the vector index finds of what an exact search finds, and how that is measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stella_ray.rows import table_schema
from stella_ray.table import recall as measuring
from stella_ray.table import vector_index
from stella_ray.table.index import IndexSettings, tidy
from stella_ray.table.recall import recall
from stella_ray.table.search import search
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import ENCODER, TITLE, add, addresses_of, numbered


def ids(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["doc_id"] for hit in hits]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> VectorTable:
    """Four thousand clustered rows in four fragments, with a PQ index."""
    place = tmp_path_factory.mktemp("indexed")
    schema = table_schema(TITLE, True, 32, pa.float32())
    table = VectorTable.create(f"{place}/t.lance", schema, ENCODER)
    dice = np.random.default_rng(5)
    centers = dice.standard_normal((80, 32))
    for start in range(0, 4_000, 1_000):
        raw = centers[dice.integers(0, 80, 1_000)] + 0.5 * dice.standard_normal((1_000, 32))
        vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        add(table, numbered(1_000, start), vectors=vectors, schema=schema)
    tidy(table, IndexSettings(vector="ivf_pq", min_rows=1))
    return table


def test_scores_found_through_the_index_are_exact_and_nearly_all_hits_are_found(
    indexed: VectorTable,
) -> None:
    table = indexed.dataset.to_table(columns=["doc_id", "vector"])
    stored = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 32)
    by_id = dict(zip(table["doc_id"].to_pylist(), stored, strict=True))
    found = 0
    for query in stored[::400]:
        hits = search(indexed, vector=query, limit=10)
        assert [hit["score"] for hit in hits] == pytest.approx(
            [float(by_id[doc] @ query) for doc in ids(hits)], abs=1e-5
        )
        nearest = {list(by_id)[i] for i in np.argsort(-(stored @ query))[:10]}
        found += len(nearest & set(ids(hits)))
    assert found >= 95
    assert len(search(indexed, vector=stored[0], limit=4_000)) == 4_000
    assert len(search(indexed, vector=stored[0], limit=1_000)) == 1_000


def test_recall_is_what_it_is_for_the_same_seed_and_never_above_one(indexed: VectorTable) -> None:
    one = recall(indexed, queries=50)
    assert one == recall(indexed, queries=50)
    assert one is not None
    assert 0.95 <= one <= 1


def test_recall_shows_an_index_that_finds_little(
    indexed: VectorTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(indexed.uri, tmp_path / "t.lance")
    indexed = VectorTable.open(str(tmp_path / "t.lance"))
    indexed.dataset = indexed.dataset.create_index(
        "vector", "IVF_PQ", name=vector_index.NAME, metric="cosine", replace=True,
        num_partitions=1, num_sub_vectors=4,
    )  # fmt: skip
    monkeypatch.setattr(vector_index, "REFINE", 1)
    poor = recall(indexed)
    assert poor is not None
    assert 0.05 < poor < 0.8
    monkeypatch.setattr(measuring, "RECALL_ROWS", 1_500)
    sampled = recall(indexed)
    assert sampled is not None
    assert 0.05 < sampled < 0.95


def test_recall_of_a_sample_of_fragments_is_about_that_of_all(
    indexed: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recall(indexed)
    monkeypatch.setattr(measuring, "RECALL_ROWS", 1_500)
    assert recall(indexed) == pytest.approx(whole, abs=0.05)


def test_recall_is_measured_where_rows_were_deleted_and_where_few_are_left(
    docs: VectorTable,
) -> None:
    add(docs, numbered(300))
    tidy(docs, IndexSettings(min_rows=1))
    docs.commit([], addresses_of(docs, numbered(296)))
    assert recall(docs) == 1
