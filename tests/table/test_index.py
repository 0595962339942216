"""Tidying: few fragments, indexes that cover every row, and the very same rows as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lance.dataset import DatasetOptimizer

from stella_ray.errors import SettingsError, TableError
from stella_ray.rows import table_schema
from stella_ray.table import index as indexing
from stella_ray.table import vector_index
from stella_ray.table.fragments import write_rows
from stella_ray.table.index import (
    INDEX_NAME,
    ROWS_PER_FRAGMENT,
    SMALL_FRAGMENTS,
    TEXT_INDEX,
    IndexSettings,
    tidy,
    uncovered_rows,
)
from stella_ray.table.recall import recall
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import (
    DIM,
    ENCODER,
    add,
    addresses_of,
    ids_in,
    numbered,
    quoted,
    rows,
)

SMALL = IndexSettings(min_rows=100)
"""Makes a vector index of tables that tests can afford."""
COVERED = {INDEX_NAME: 0, TEXT_INDEX: 0, vector_index.NAME: 0}


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
    tidy(docs, IndexSettings(vector="none", text=False))
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
    assert uncovered_rows(docs) == {INDEX_NAME: 0, TEXT_INDEX: 0}


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
            assert uncovered_rows(docs) == {INDEX_NAME: 0, TEXT_INDEX: 0}
            assert fragments(docs) < SMALL_FRAGMENTS
        found = docs.dataset.to_table(columns=["doc_id", "text"]).to_pylist()
        assert len(found) == len(expected)
        assert {row["doc_id"]: row["text"] for row in found} == expected
    for doc_id in numbered(born):
        seen = docs.dataset.to_table(columns=["text"], filter=f"doc_id = '{doc_id}'")
        assert seen["text"].to_pylist() == ([expected[doc_id]] if doc_id in expected else [])
    assert ids_in(VectorTable.open(docs.uri)) == sorted(expected)


def test_every_index_covers_every_row_and_one_that_lacks_some_says_how_many(
    docs: VectorTable,
) -> None:
    add(docs, numbered(150))
    assert uncovered_rows(docs) == {}
    tidy(docs, SMALL)
    assert uncovered_rows(docs) == COVERED
    add(docs, numbered(7, 150))
    assert set(uncovered_rows(docs).values()) == {7}
    docs.commit([], addresses_of(docs, ["d151", "d3"]))
    assert set(uncovered_rows(docs).values()) == {6}
    tidy(docs, SMALL)
    assert uncovered_rows(docs) == COVERED


def test_a_second_tidying_with_all_indexes_makes_no_version(docs: VectorTable) -> None:
    add(docs, numbered(150))
    tidy(docs, SMALL)
    version = docs.version
    tidy(docs, SMALL)
    tidy(VectorTable.open(docs.uri), SMALL)
    assert VectorTable.open(docs.uri).version == version


def test_a_full_text_index_by_other_rules_is_built_anew(docs: VectorTable) -> None:
    add(docs, numbered(20))
    docs.dataset.create_scalar_index("text", "INVERTED", name=TEXT_INDEX, base_tokenizer="icu")
    tidy(docs)
    details = {i.name: i.details for i in docs.dataset.describe_indices()}[TEXT_INDEX]
    assert indexing.FULL_TEXT.items() <= details.items()


STEPS = ("compact_files", "create_scalar_index", "create_index", "update_config")


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_what_breaks_off_at_any_step_is_finished_by_the_next_call(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch, step: str, done: bool
) -> None:
    """`after`: the store did what it was asked, and its answer was lost."""
    for start in range(0, 200, 20):
        add(docs, numbered(20, start))
    before = by_id(docs)
    owner: Any = DatasetOptimizer if step == "compact_files" else lance.LanceDataset
    own = getattr(owner, step)

    def broken(self: Any, *words: Any, **more: Any) -> None:
        if done:
            own(self, *words, **more)
        raise OSError("LanceError(IO): connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, broken)
        with pytest.raises(TableError, match="connection reset"):
            tidy(docs, SMALL)
    assert by_id(VectorTable.open(docs.uri)).equals(before)
    tidy(docs, SMALL)
    assert uncovered_rows(docs) == COVERED
    assert fragments(docs) == 1
    assert by_id(docs).equals(before)
    assert recall(docs) == pytest.approx(1, abs=0.05)


def test_a_compaction_of_many_rows_is_made_in_several_passes(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "ROWS_PER_FRAGMENT", 100)
    monkeypatch.setattr(indexing, "ROWS_PER_PASS", 400)
    for start in range(0, 1_000, 20):
        add(docs, numbered(20, start))
    before, version = by_id(docs), docs.version
    tidy(docs, IndexSettings(text=False))
    assert docs.version - version > 2, "passes and the index"
    assert fragments(docs) <= 10
    assert by_id(docs).equals(before)


def test_what_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"index\.min_rows 0 is too small; expected 1 or more"):
        IndexSettings(min_rows=0)


def test_a_table_without_text_gets_no_full_text_index(tmp_path: Path) -> None:
    schema = table_schema([], False, DIM, pa.float32())
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    add(table, numbered(5), schema=schema)
    tidy(table)
    assert uncovered_rows(table) == {INDEX_NAME: 0}
