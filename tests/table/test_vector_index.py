"""The vector index: there when it's worth it, trained on what the table holds, and kept small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from stella_ray.errors import TableError
from stella_ray.rows import table_schema
from stella_ray.table import vector_index
from stella_ray.table.index import (
    INDEX_NAME,
    SMALL_FRAGMENTS,
    TEXT_INDEX,
    IndexSettings,
    tidy,
    uncovered_rows,
)
from stella_ray.table.opening import open_for_run
from stella_ray.table.recall import recall
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import ENCODER, OTHER, SCHEMA, TITLE, add, addresses_of, numbered

SMALL = IndexSettings(min_rows=100)
"""Makes a vector index of tables that tests can afford."""
COVERED = {INDEX_NAME: 0, TEXT_INDEX: 0, vector_index.NAME: 0}


def vector_index_of(table: VectorTable) -> Any:
    """Lance's description of the vector index; None where there is none."""
    every = VectorTable.open(table.uri).dataset.describe_indices()
    return next((index for index in every if index.name == vector_index.NAME), None)


def trained_rows(table: VectorTable) -> int:
    return int(table.dataset.config()[vector_index.TRAINED_ROWS])


def test_a_small_table_has_no_vector_index_and_one_that_grows_gets_it(docs: VectorTable) -> None:
    add(docs, numbered(99))
    tidy(docs, SMALL)
    assert vector_index_of(docs) is None
    assert recall(docs) is None
    add(docs, ["d99"])
    tidy(docs, SMALL)
    assert vector_index_of(docs).index_type == "IVF_HNSW_SQ"
    docs.commit([], addresses_of(docs, ["d5"]))
    tidy(docs, SMALL)
    assert vector_index_of(docs) is None, "it shrank"


def test_an_index_that_is_not_wanted_any_more_goes(docs: VectorTable) -> None:
    add(docs, numbered(150))
    tidy(docs, SMALL)
    tidy(docs, IndexSettings(vector="none", min_rows=100, text=False))
    assert uncovered_rows(docs) == {INDEX_NAME: 0}


@pytest.mark.parametrize("number", [pa.float32(), pa.float16()], ids=str)
@pytest.mark.parametrize("kind", ["ivf_pq", "ivf_hnsw_sq"])
@pytest.mark.parametrize("dim", [1, 6, 8, 37])
def test_every_kind_of_index_is_built_and_finds_vectors_of_every_size_and_type(
    tmp_path: Path, kind: Any, dim: int, number: pa.DataType
) -> None:
    schema = table_schema(TITLE, True, dim, number)
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    add(table, numbered(300), schema=schema)
    tidy(table, IndexSettings(vector=kind, min_rows=100))
    assert vector_index_of(table).index_type == kind.upper()
    assert uncovered_rows(table) == COVERED
    found = recall(table)
    # Of vectors of one number, all that have its sign are equally near.
    assert found is not None
    assert found >= 0.95 or dim == 1


@pytest.mark.parametrize("dim", [1, 7, 8, 32, 37, 100, 384, 768, 1_024, 1_792])
def test_pq_cuts_any_vector_into_equal_parts_of_a_few_numbers(dim: int) -> None:
    parts = vector_index.sub_vectors(dim)
    assert dim % parts == 0
    assert dim < 100 or dim // parts <= 10
    assert dim < 384 or dim // parts == 8


@pytest.mark.parametrize("dim", [8, 384, 1_024])
@pytest.mark.parametrize("rows", [1, 50_000, 1_000_000, 100_000_000, 10_000_000_000])
@pytest.mark.parametrize("kind", ["ivf_pq", "ivf_hnsw_sq"])
def test_the_sample_that_training_holds_is_bounded_whatever_the_table(
    kind: Any, rows: int, dim: int
) -> None:
    shape = vector_index.shape(kind, rows, dim)
    sample = shape["num_partitions"] * shape["sample_rate"] * dim * 4
    assert 1 <= shape["num_partitions"] <= vector_index.MAX_PARTITIONS
    assert shape["sample_rate"] >= vector_index.MIN_SAMPLES
    assert sample <= 1.5 * vector_index.TRAIN_BYTES


def test_large_tables_get_pq_by_auto_and_keep_their_kind_until_they_doubled(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(docs, numbered(150))
    tidy(docs, SMALL)
    monkeypatch.setattr(vector_index, "LARGE", 200)
    add(docs, numbered(100, 150))
    tidy(docs, SMALL)
    assert (vector_index_of(docs).index_type, trained_rows(docs)) == ("IVF_HNSW_SQ", 150)
    add(docs, numbered(50, 250))
    tidy(docs, SMALL)
    assert (vector_index_of(docs).index_type, trained_rows(docs)) == ("IVF_PQ", 300)


def test_another_kind_that_is_asked_for_replaces_the_index(docs: VectorTable) -> None:
    add(docs, numbered(300))
    tidy(docs, SMALL)
    tidy(docs, IndexSettings(vector="ivf_pq", min_rows=100))
    assert vector_index_of(docs).index_type == "IVF_PQ"
    tidy(docs, SMALL)
    assert vector_index_of(docs).index_type == "IVF_PQ", "auto is content with either"
    assert uncovered_rows(docs) == COVERED


def test_new_rows_join_the_index_and_it_is_trained_anew_once_the_table_doubled(
    docs: VectorTable,
) -> None:
    add(docs, numbered(150))
    tidy(docs, SMALL)
    trained = vector_index_of(docs).segments[0].uuid
    add(docs, numbered(149, 150))
    tidy(docs, SMALL)
    segments = [segment.uuid for segment in vector_index_of(docs).segments]
    assert (len(segments), segments[0], trained_rows(docs)) == (2, trained, 150)
    add(docs, ["d299"])
    tidy(docs, SMALL)
    segments = [segment.uuid for segment in vector_index_of(docs).segments]
    assert (len(segments), trained_rows(docs)) == (1, 300)
    assert trained not in segments


def test_segments_and_fragments_stay_few_night_after_night(docs: VectorTable) -> None:
    add(docs, numbered(1_000))
    tidy(docs, SMALL)
    most = 0
    for night in range(25):
        add(docs, numbered(5, 1_000 + 5 * night))
        tidy(docs, SMALL)
        most = max(most, len(vector_index_of(docs).segments))
        assert len(docs.dataset.get_fragments()) <= SMALL_FRAGMENTS + vector_index.MAX_SEGMENTS
        assert uncovered_rows(docs) == COVERED
    assert most == vector_index.MAX_SEGMENTS
    assert recall(docs) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("encoder", [OTHER, ENCODER], ids=["another encoder", "the same"])
def test_a_rebuild_starts_without_indexes_and_trains_its_own(
    docs: VectorTable, encoder: dict[str, Any]
) -> None:
    add(docs, numbered(300))
    tidy(docs, SMALL)
    docs.dataset.tags.create("live", docs.version)
    table = open_for_run(docs.uri, docs, SCHEMA, encoder, rebuild=True)
    assert uncovered_rows(table) == {}
    add(table, numbered(120, 1_000))
    tidy(table, SMALL)
    assert (uncovered_rows(table), trained_rows(table)) == (COVERED, 120)
    assert trained_rows(VectorTable.open(docs.uri, "live")) == 300
    assert uncovered_rows(VectorTable.open(docs.uri, "live")) == COVERED


def test_a_retraining_that_breaks_off_is_not_taken_for_done(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(docs, numbered(150))
    tidy(docs, SMALL)
    add(docs, numbered(150, 150))

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, "create_index", broken)
        with pytest.raises(TableError, match="indexing vectors failed: out of memory"):
            tidy(docs, SMALL)
    tidy(docs, SMALL)
    assert (len(vector_index_of(docs).segments), trained_rows(docs)) == (1, 300)
