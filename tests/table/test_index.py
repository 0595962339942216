"""Tidying: few fragments, an index that covers every row, and the very same rows as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from stella_ray.table.fragments import write_rows
from stella_ray.table.index import INDEX_NAME, ROWS_PER_FRAGMENT, SMALL_FRAGMENTS, tidy
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import DIM, add, addresses_of, ids_in, numbered, quoted, rows


def index_stats(table: VectorTable) -> dict[str, Any]:
    stats: dict[str, Any] = table.dataset.stats.index_stats(INDEX_NAME)
    return stats


def fragments(table: VectorTable) -> int:
    return len(table.dataset.get_fragments())


def by_id(table: VectorTable) -> pa.Table:
    return table.dataset.to_table().sort_by("doc_id")


def found_by_lancedb(table: VectorTable, doc_id: str) -> list[str]:
    opened = lancedb.connect(Path(table.uri).parent).open_table("docs")
    rows = opened.search().where(f"doc_id = {quoted(doc_id)}").to_list()
    return [row["doc_id"] for row in rows]


def test_tidying_makes_a_btree_on_doc_id_that_covers_every_row(docs: VectorTable) -> None:
    add(docs, numbered(300))
    tidy(docs)
    stats = index_stats(docs)
    assert (stats["index_type"], stats["num_unindexed_rows"]) == ("BTree", 0)
    assert stats["num_indexed_rows"] == 300
    plan = docs.dataset.scanner(filter="doc_id = 'd7'").explain_plan()
    assert "ScalarIndexQuery" in plan


def test_the_open_table_is_the_tidied_version(docs: VectorTable) -> None:
    for i in range(SMALL_FRAGMENTS):
        add(docs, [f"d{i}"])
    before = docs.version
    tidy(docs)
    assert before < docs.version == VectorTable.open(docs.uri).version


def test_an_empty_table_is_left_as_it_is(docs: VectorTable) -> None:
    tidy(docs)
    assert (docs.version, list(docs.dataset.describe_indices())) == (1, [])


def test_a_table_that_lost_all_its_rows_is_tidied_too(docs: VectorTable) -> None:
    add(docs, numbered(20))
    tidy(docs)
    docs.commit([], docs.known().addresses)
    tidy(docs)
    add(docs, ["again"])
    tidy(docs)
    assert found_by_lancedb(docs, "again") == ["again"]
    assert found_by_lancedb(docs, "d3") == []


def test_a_second_tidying_makes_no_version_and_no_fragment(docs: VectorTable) -> None:
    for i in range(SMALL_FRAGMENTS + 2):
        add(docs, [f"d{i}"])
    tidy(docs)
    version, count = docs.version, fragments(docs)
    tidy(docs)
    tidy(VectorTable.open(docs.uri))
    assert (VectorTable.open(docs.uri).version, fragments(docs)) == (version, count)


def test_few_small_fragments_are_not_worth_a_compaction(docs: VectorTable) -> None:
    for i in range(SMALL_FRAGMENTS - 1):
        add(docs, [f"d{i}"])
    tidy(docs)
    assert fragments(docs) == SMALL_FRAGMENTS - 1
    add(docs, ["one more"])
    tidy(docs)
    # Lance merges the seven that are indexed and keeps the new one apart.
    assert fragments(docs) == 2


def test_compaction_keeps_the_very_same_rows(docs: VectorTable) -> None:
    for start in range(0, 600, 50):
        add(docs, numbered(50, start))
    docs.commit([], addresses_of(docs, numbered(30, 135)))
    before, keys = by_id(docs), docs.known().keys
    tidy(docs)
    assert fragments(docs) == 1
    assert by_id(docs).equals(before)
    assert before.num_rows == 570
    assert np.array_equal(docs.known().keys, keys)
    assert docs.encoder()["name"] == "tiny"


def test_a_full_fragment_is_not_written_again_for_a_few_new_rows(docs: VectorTable) -> None:
    vectors = np.eye(DIM, dtype=np.float32)[np.arange(ROWS_PER_FRAGMENT) % DIM]
    add(docs, numbered(ROWS_PER_FRAGMENT), vectors=vectors)
    full = docs.dataset.get_fragments()[0].data_files()[0].path
    for i in range(SMALL_FRAGMENTS):
        add(docs, [f"new{i}"])
    tidy(docs)
    files = [one.path for part in docs.dataset.get_fragments() for one in part.data_files()]
    assert full in files
    assert len(files) == 2
    assert found_by_lancedb(docs, "d131071") == ["d131071"]
    assert found_by_lancedb(docs, "new7") == ["new7"]


def test_the_index_covers_what_comes_after_it_was_made(docs: VectorTable) -> None:
    add(docs, numbered(100))
    tidy(docs)
    add(docs, ["late"])
    assert index_stats(docs)["num_unindexed_rows"] == 1
    assert found_by_lancedb(docs, "late") == ["late"], "a row is found before it is indexed"
    tidy(docs)
    assert index_stats(docs)["num_unindexed_rows"] == 0
    assert found_by_lancedb(docs, "late") == ["late"]
    assert len(list(docs.dataset.describe_indices())) == 1


def test_deleted_rows_are_not_found_through_the_index(docs: VectorTable) -> None:
    add(docs, numbered(100))
    tidy(docs)
    docs.commit([], addresses_of(docs, ["d5", "d6"]))
    assert found_by_lancedb(docs, "d5") == []
    tidy(docs)
    assert (found_by_lancedb(docs, "d5"), found_by_lancedb(docs, "d7")) == ([], ["d7"])
    assert index_stats(docs)["num_unindexed_rows"] == 0


def test_a_replaced_document_is_found_once_with_its_new_text(docs: VectorTable) -> None:
    add(docs, numbered(20))
    tidy(docs)
    new = write_rows(rows(["d3"], texts=["new"]), docs.uri)
    docs.commit(new, addresses_of(docs, ["d3"]))
    for _ in range(2):
        found = docs.dataset.to_table(filter="doc_id = 'd3'")
        assert found["text"].to_pylist() == ["new"]
        tidy(docs)


def test_ids_of_four_kilobytes_that_differ_in_the_last_letter_are_told_apart(
    docs: VectorTable,
) -> None:
    ids = ["x" * 4_095 + last for last in "abcdefgh"]
    for doc_id in ids:
        add(docs, [doc_id], titles=[doc_id[-1]])
    tidy(docs)
    for doc_id in ids:
        found = docs.dataset.to_table(filter=f"doc_id = '{doc_id}'")
        assert found["title"].to_pylist() == [doc_id[-1]]


def test_after_forty_random_nights_the_table_is_what_a_dictionary_says(
    docs: VectorTable,
) -> None:
    dice = np.random.default_rng(7)
    expected: dict[str, str] = {}
    born = 0
    for night in range(40):
        known = sorted(expected)
        gone = [i for i in known if dice.random() < 0.15]
        changed = [i for i in known if i not in gone and dice.random() < 0.1]
        new = numbered(int(dice.integers(0, 12)), born)
        born += len(new)
        texts = {doc_id: f"{doc_id} in night {night}" for doc_id in [*changed, *new]}
        doomed = addresses_of(docs, [*gone, *changed])
        block = rows(texts, texts=list(texts.values())) if texts else None
        docs.commit(write_rows(block, docs.uri) if block else [], doomed)
        expected = {i: text for i, text in expected.items() if i not in gone} | texts
        if night % 3 == 2:
            tidy(docs)
            assert index_stats(docs)["num_unindexed_rows"] == 0
            assert fragments(docs) < SMALL_FRAGMENTS
        found = docs.dataset.to_table(columns=["doc_id", "text"]).to_pylist()
        assert len(found) == len(expected)
        assert {row["doc_id"]: row["text"] for row in found} == expected
    for doc_id in numbered(born):
        seen = docs.dataset.to_table(columns=["text"], filter=f"doc_id = '{doc_id}'")
        assert seen["text"].to_pylist() == ([expected[doc_id]] if doc_id in expected else [])
    assert ids_in(VectorTable.open(docs.uri)) == sorted(expected)
