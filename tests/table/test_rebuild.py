"""One table, one encoder: what is accepted, and how a rebuild starts over beside what is live."""

from __future__ import annotations

import lance
import numpy as np
import pyarrow as pa
import pytest

from stella_ray.errors import ModelMismatch, TableError
from stella_ray.rows import table_schema
from stella_ray.table.index import INDEX_NAME, tidy
from stella_ray.table.opening import accept, open_for_run
from stella_ray.table.publish import publish, rollback
from stella_ray.table.search import open_live, search
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import (
    DIM,
    ENCODER,
    OTHER,
    SCHEMA,
    TITLE,
    add,
    ids_in,
    numbered,
    unit_vectors,
)

WIDE = table_schema(TITLE, True, 16, pa.float32())
HALF = table_schema(TITLE, True, DIM, pa.float16())


@pytest.fixture
def live(docs: VectorTable) -> VectorTable:
    """Five published rows in version 2."""
    publish(add(docs, numbered(5)), "r")
    return docs


def for_run(
    table: VectorTable,
    *,
    schema: pa.Schema = SCHEMA,
    encoder: dict[str, object] = ENCODER,
    rebuild: bool = False,
) -> VectorTable:
    """What a new process gets."""
    there = VectorTable.open_if_there(table.uri)
    return open_for_run(table.uri, there, schema, encoder, rebuild=rebuild)


def test_the_same_encoder_goes_on_with_the_table(live: VectorTable) -> None:
    table = for_run(live)
    assert (table.version, table.dataset.count_rows()) == (2, 5)


def test_a_table_that_is_not_there_is_made(docs: VectorTable) -> None:
    uri = docs.uri.replace("docs", "new")
    table = open_for_run(uri, None, SCHEMA, ENCODER, rebuild=True)
    assert (table.uri, table.version, table.encoder()) == (uri, 1, ENCODER)


def test_an_encoder_that_only_moved_is_accepted(live: VectorTable) -> None:
    moved = {**ENCODER, "name": "elsewhere", "open": {"path": "/elsewhere"}}
    accept(live, SCHEMA, moved)


def test_another_encoder_is_refused_with_both_names_what_differs_and_the_way_out(
    live: VectorTable,
) -> None:
    with pytest.raises(ModelMismatch) as caught:
        for_run(live, encoder=OTHER)
    assert str(caught.value) == (
        f"{live.uri} holds vectors of tiny (d1d1), this run's encoder is other (d2d2); they differ"
        " in weights, prefix. Use the table's encoder, another table, or --rebuild to embed"
        " everything anew"
    )
    assert VectorTable.open(live.uri).version == 2


@pytest.mark.parametrize(
    ("schema", "have", "want"),
    [
        (table_schema([], True, DIM, pa.float32()), "title (string)", "none beyond those"),
        (table_schema(TITLE, False, DIM, pa.float32()), "text (string)", "none beyond those"),
        (
            table_schema([*TITLE, pa.field("year", pa.int64())], True, DIM, pa.float32()),
            "none beyond those",
            "year (int64)",
        ),
        (
            table_schema([pa.field("title", pa.int64())], True, DIM, pa.float32()),
            "title (string)",
            "title (int64)",
        ),
        (
            HALF,
            f"vector (fixed_size_list<item: float>[{DIM}])",
            f"vector (fixed_size_list<item: halffloat>[{DIM}])",
        ),
    ],
)
def test_other_columns_are_refused_by_name_and_type(
    live: VectorTable, schema: pa.Schema, have: str, want: str
) -> None:
    with pytest.raises(TableError) as caught:
        for_run(live, schema=schema)
    assert str(caught.value) == (
        f"{live.uri} has the columns {have}, this run would write {want}; use the same"
        " --keep_columns, --store_text, --vector_type and --long, or --rebuild"
    )


def test_kept_columns_in_another_order_are_the_same_columns(docs: VectorTable) -> None:
    two = [pa.field("a", pa.string()), pa.field("b", pa.int64())]
    uri = docs.uri.replace("docs", "two")
    table = VectorTable.create(uri, table_schema(two, True, DIM, pa.float32()), ENCODER)
    accept(table, table_schema(two[::-1], True, DIM, pa.float32()), ENCODER)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_lance_table_of_somebody_else_is_neither_used_nor_rebuilt(
    docs: VectorTable, rebuild: bool
) -> None:
    uri = docs.uri.replace("docs", "theirs")
    lance.write_dataset(pa.table({"id": [1, 2]}), uri)
    with pytest.raises(TableError, match=r"a Lance table that jobs/embed\.py did not write"):
        open_for_run(uri, VectorTable.open(uri), SCHEMA, ENCODER, rebuild=rebuild)
    assert VectorTable.open(uri).dataset.count_rows() == 2


def test_a_rebuild_is_a_new_empty_version_while_live_serves_the_old_rows(
    live: VectorTable,
) -> None:
    table = for_run(live, schema=WIDE, encoder=OTHER, rebuild=True)
    assert (table.version, table.dataset.count_rows(), table.encoder()) == (3, 0, OTHER)
    add(table, ["new1", "new2"], schema=WIDE)
    served = open_live(live.uri)
    assert (served.version, served.encoder(), ids_in(served)) == (2, ENCODER, numbered(5))
    hit = search(served, vector=unit_vectors(["d3"])[0], limit=1)[0]
    assert hit["doc_id"] == "d3"
    assert VectorTable.open(live.uri).dataset.schema.field("vector").type.list_size == 16


def test_a_rebuild_serves_its_own_encoder_and_size_once_published_and_can_be_rolled_back(
    live: VectorTable,
) -> None:
    table = for_run(live, schema=WIDE, encoder=OTHER, rebuild=True)
    add(table, ["new1", "new2"], schema=WIDE)
    tidy(table)
    publish(table, "r")
    served = open_live(live.uri)
    assert (served.encoder(), ids_in(served)) == (OTHER, ["new1", "new2"])
    assert search(served, vector=unit_vectors(["new2"], 16)[0], limit=1)[0]["doc_id"] == "new2"
    assert table.dataset.stats.index_stats(INDEX_NAME)["num_unindexed_rows"] == 0
    rollback(live.uri)
    served = open_live(live.uri)
    assert (served.encoder(), ids_in(served)) == (ENCODER, numbered(5))


def test_a_rebuild_of_an_indexed_table_leaves_no_old_row_to_be_found(live: VectorTable) -> None:
    tidy(live)
    publish(live, "r")
    table = for_run(live, rebuild=True)
    add(table, ["d1", "fresh"])
    tidy(table)
    found = table.dataset.to_table(filter="doc_id IN ('d0', 'd1', 'fresh')")
    assert sorted(found["doc_id"].to_pylist()) == ["d1", "fresh"]
    assert len(table.known().keys) == 2


def test_a_dead_rebuild_of_the_same_encoder_is_gone_on_with(live: VectorTable) -> None:
    add(for_run(live, encoder=OTHER, rebuild=True), ["new1"])
    again = for_run(live, encoder=OTHER, rebuild=True)
    assert (again.version, ids_in(again)) == (4, ["new1"])
    assert ids_in(for_run(live, encoder=OTHER)) == ["new1"], "also without --rebuild"


def test_a_dead_rebuild_of_another_encoder_is_started_over(live: VectorTable) -> None:
    add(for_run(live, encoder=OTHER, rebuild=True), ["new1"])
    again = for_run(live, rebuild=True)
    assert (ids_in(again), again.encoder()["name"]) == ([], "tiny")


def test_a_dead_rebuild_with_other_columns_or_vectors_is_started_over(live: VectorTable) -> None:
    add(for_run(live, rebuild=True), ["new1"])
    half = for_run(live, schema=HALF, rebuild=True)
    assert ids_in(half) == []
    assert half.dataset.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    add(half, ["new1"], schema=HALF)
    no_text = for_run(live, schema=table_schema(TITLE, False, DIM, pa.float32()), rebuild=True)
    assert (ids_in(no_text), "text" in no_text.dataset.schema.names) == ([], False)


def test_a_rebuild_starts_over_when_the_last_one_was_published(live: VectorTable) -> None:
    publish(add(for_run(live, rebuild=True), ["new1"]), "r")
    assert ids_in(for_run(live, rebuild=True)) == []
    assert ids_in(open_live(live.uri)) == ["new1"]


def test_a_rebuild_starts_over_when_the_last_one_was_published_and_rolled_back(
    live: VectorTable,
) -> None:
    publish(add(for_run(live, rebuild=True), ["bad"]), "r")
    rollback(live.uri)
    again = for_run(live, rebuild=True)
    assert ids_in(again) == []
    add(again, ["good"])
    assert ids_in(for_run(live, rebuild=True)) == ["good"], "and this one can be gone on with"


def test_a_table_that_was_never_filled_takes_the_new_schema_and_encoder(
    docs: VectorTable,
) -> None:
    table = for_run(docs, schema=WIDE, encoder=OTHER)
    assert (table.encoder(), table.dataset.schema.names) == (OTHER, WIDE.names)
    add(table, ["a"], schema=WIDE)
    assert ids_in(for_run(docs, schema=WIDE, encoder=OTHER)) == ["a"]


def test_a_never_filled_table_makes_one_version_however_often_a_run_dies(
    docs: VectorTable,
) -> None:
    versions = [for_run(docs).version for _ in range(4)]
    assert versions[1:] == [versions[1]] * 3


def test_a_filled_but_never_published_table_is_not_given_to_another_encoder(
    docs: VectorTable,
) -> None:
    add(docs, ["a"])
    with pytest.raises(ModelMismatch):
        for_run(docs, encoder=OTHER)


def test_an_emptied_published_table_is_not_given_to_another_encoder(live: VectorTable) -> None:
    live.commit([], live.known().addresses)
    publish(live, "r")
    with pytest.raises(ModelMismatch):
        for_run(live, encoder=OTHER)


def test_a_run_whose_table_is_rebuilt_under_it_is_refused(live: VectorTable) -> None:
    running = VectorTable.open(live.uri)
    for_run(live, encoder=OTHER, rebuild=True)
    with pytest.raises(TableError, match="adding rows failed: Incompatible transaction"):
        add(running, ["late"])
    assert np.array_equal(ids_in(VectorTable.open(live.uri)), [])
