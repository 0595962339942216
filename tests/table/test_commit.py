"""Commits: rows come and go in one version; what was written can be found, read and verified."""

from __future__ import annotations

from pathlib import Path

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest

from stella_ray.errors import TableError
from stella_ray.rows import key_array
from stella_ray.table.fragments import rows_at, write_rows
from stella_ray.table.index import tidy
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import add, addresses_of, ids_in, numbered, quoted, rows

ODD_IDS = [
    "it's", "''", '"quoted"', "two\nlines", "tab\tand\rreturn", "\\", "😀👨‍👩‍👧",
    "文档/甲?a=1&b=%20", " spaced ", "%_", "--", "a;b", "\x00nul", "e\u0301", "é",
    "\u202eright to left", "四" * 1_365, "x" * 4_095,
]  # fmt: skip


def test_written_rows_are_nobodys_until_they_are_committed(docs: VectorTable) -> None:
    receipts = write_rows(rows(["a", "b"]), docs.uri)
    assert all(len(receipt) < 2_000 for receipt in receipts)
    assert VectorTable.open(docs.uri).dataset.count_rows() == 0
    docs.commit(receipts)
    assert ids_in(VectorTable.open(docs.uri)) == ["a", "b"]


def test_one_commit_takes_the_fragments_of_many_workers(docs: VectorTable) -> None:
    receipts = [one for i in range(20) for one in write_rows(rows([f"d{i}"]), docs.uri)]
    docs.commit(receipts)
    assert (docs.version, docs.dataset.count_rows()) == (2, 20)


def test_new_rows_come_and_doomed_ones_go_in_one_version(docs: VectorTable) -> None:
    add(docs, numbered(10))
    before = VectorTable.open(docs.uri)
    doomed = addresses_of(docs, ["d3", "d4"])
    docs.commit(write_rows(rows(["new1", "new2"]), docs.uri), doomed)
    assert docs.version == before.version + 1 == VectorTable.open(docs.uri).version
    assert ids_in(docs) == sorted({*numbered(10), "new1", "new2"} - {"d3", "d4"})
    assert ids_in(before) == numbered(10), "a reader of the version before sees neither"
    assert ids_in(VectorTable.open(docs.uri, before.version)) == numbered(10)


def test_a_changed_document_is_replaced_without_a_moment_of_two_or_none(
    docs: VectorTable,
) -> None:
    add(docs, ["a", "b"], texts=["old a", "old b"])
    docs.commit(write_rows(rows(["a"], texts=["new a"]), docs.uri), addresses_of(docs, ["a"]))
    for version, text in ((2, "old a"), (3, "new a")):
        found = VectorTable.open(docs.uri, version).dataset.to_table(filter="doc_id = 'a'")
        assert found["text"].to_pylist() == [text]


def test_a_fragment_whose_rows_all_go_is_removed(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    add(docs, ["c"])
    docs.commit([], addresses_of(docs, ["a", "b"]))
    assert ids_in(docs) == ["c"]
    assert len(docs.dataset.get_fragments()) == 1


def test_a_table_can_lose_all_its_rows_and_fill_again(docs: VectorTable) -> None:
    add(docs, numbered(5))
    docs.commit([], docs.known().addresses)
    assert docs.dataset.count_rows() == len(docs.known().keys) == 0
    add(docs, ["again"])
    assert ids_in(VectorTable.open(docs.uri)) == ["again"]


def test_twenty_thousand_doomed_rows_over_many_fragments_go_at_once(docs: VectorTable) -> None:
    for start in range(0, 25_000, 5_000):
        add(docs, numbered(5_000, start))
    version, stay = docs.version, set(numbered(25_000)[::5])
    doomed = addresses_of(docs, [i for i in numbered(25_000) if i not in stay])
    assert len(doomed) == 20_000
    docs.commit(write_rows(rows(["new"]), docs.uri), np.random.default_rng(0).permutation(doomed))
    assert docs.version == version + 1
    assert set(ids_in(docs)) == stay | {"new"}


def test_rows_can_go_again_and_again_from_one_fragment(docs: VectorTable) -> None:
    add(docs, numbered(100))
    left = set(numbered(100))
    for night in range(5):
        going = {f"d{i}" for i in range(night, 100, 10)}
        docs.commit([], addresses_of(docs, going))
        left -= going
        assert set(ids_in(docs)) == left


@pytest.mark.parametrize("doomed", [None, np.empty(0, np.uint64)])
def test_nothing_to_add_and_nothing_doomed_makes_no_version(
    docs: VectorTable, doomed: np.ndarray | None
) -> None:
    add(docs, ["a"])
    assert docs.commit([], doomed).version == 2 == VectorTable.open(docs.uri).version


def test_a_commit_keeps_what_another_process_committed_in_between(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    mine, theirs = VectorTable.open(docs.uri), VectorTable.open(docs.uri)
    add(theirs, ["theirs"])
    mine.commit(write_rows(rows(["mine"]), docs.uri), addresses_of(mine, ["a"]))
    assert ids_in(mine) == ids_in(VectorTable.open(docs.uri)) == ["b", "mine", "theirs"]


def test_of_two_processes_that_delete_at_once_the_later_is_refused_and_changes_nothing(
    docs: VectorTable,
) -> None:
    add(docs, numbered(6))
    mine, theirs = VectorTable.open(docs.uri), VectorTable.open(docs.uri)
    theirs.commit([], addresses_of(theirs, ["d1", "d2"]))
    with pytest.raises(TableError, match="adding rows and deleting stale ones failed") as caught:
        mine.commit(write_rows(rows(["mine"]), docs.uri), addresses_of(mine, ["d2", "d3"]))
    assert "\n" not in str(caught.value)
    assert ids_in(VectorTable.open(docs.uri)) == ["d0", "d3", "d4", "d5"]


def test_odd_ids_survive_and_are_found_by_lancedb(docs: VectorTable) -> None:
    ids = sorted(ODD_IDS)
    add(docs, ids, texts=[f"text of {doc_id}" for doc_id in ids])
    tidy(docs)
    assert ids_in(docs) == ids
    table = lancedb.connect(Path(docs.uri).parent).open_table("docs")
    for doc_id in ids:
        if "\x00" in doc_id:
            continue  # not writable in SQL
        found = table.search().where(f"doc_id = {quoted(doc_id)}").to_list()
        assert [row["text"] for row in found] == [f"text of {doc_id}"], doc_id


def test_a_text_of_a_megabyte_and_an_empty_title_survive(docs: VectorTable) -> None:
    text = "长" * 350_000
    add(docs, ["long"], texts=[text], titles=[""])
    row = docs.dataset.to_table().to_pylist()[0]
    assert (row["text"], row["title"]) == (text, "")


def test_known_keys_are_sorted_and_each_address_leads_to_its_row(docs: VectorTable) -> None:
    for start in (0, 700, 1_400):
        add(docs, numbered(700, start))
    docs.commit([], addresses_of(docs, numbered(300, 500)))
    known = docs.known()
    assert len(known.keys) == len(known.addresses) == 1_800
    assert known.version == docs.version
    assert known.keys.dtype == "S16"
    assert known.addresses.dtype == np.uint64
    assert (known.keys[1:] > known.keys[:-1]).all()
    found = rows_at(docs.uri, known.version, known.addresses, ["row_key"])
    assert np.array_equal(key_array(found), known.keys)


def test_known_keys_hold_a_doubled_row_twice(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    add(docs, ["a"])
    keys = docs.known().keys
    assert (len(keys), len(np.unique(keys))) == (3, 2)


def test_rows_at_gives_rows_in_the_order_asked_for(docs: VectorTable) -> None:
    count = 9_000  # more than one take
    add(docs, numbered(6_000))
    add(docs, numbered(5_000, 6_000))
    docs.commit([], addresses_of(docs, numbered(2_000, 5_000)))
    alive = [i for i in numbered(11_000) if not 5_000 <= int(i[1:]) < 7_000]
    asked = np.random.default_rng(1).permutation(alive)[:count].tolist()
    found = rows_at(docs.uri, docs.version, addresses_of(docs, asked), ["doc_id", "vector"])
    assert found.column_names == ["doc_id", "vector"]
    assert found["doc_id"].to_pylist() == asked
    expected = rows(asked)["vector"].combine_chunks().flatten()
    assert found["vector"].combine_chunks().flatten().equals(expected)


def test_rows_at_reads_the_version_it_is_told(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    there = addresses_of(docs, ["b", "a"])
    version = docs.version
    docs.commit([], addresses_of(docs, ["a"]))
    found = rows_at(docs.uri, version, there, ["doc_id"])
    assert found["doc_id"].to_pylist() == ["b", "a"]


def test_rows_at_can_repeat_a_row_and_read_none(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    twice = addresses_of(docs, ["b", "a", "b"])
    found = rows_at(docs.uri, docs.version, twice, ["doc_id"])
    assert found["doc_id"].to_pylist() == ["b", "a", "b"]
    none = rows_at(docs.uri, docs.version, twice[:0], ["doc_id", "vector"])
    assert (len(none), none.column_names) == (0, ["doc_id", "vector"])


def test_rows_of_another_shape_are_not_committed(docs: VectorTable) -> None:
    block = rows(["a"]).rename_columns(["doc_id", "titel", *rows(["a"]).column_names[2:]])
    with pytest.raises(TableError, match=r"docs\.lance: writing rows failed: ") as caught:
        docs.commit(write_rows(block, docs.uri))
    assert "\n" not in str(caught.value)
    assert VectorTable.open(docs.uri).dataset.count_rows() == 0


def test_a_null_id_is_not_written(docs: VectorTable) -> None:
    block = rows(["a"]).set_column(0, rows(["a"]).schema.field(0), pa.nulls(1, pa.string()))
    with pytest.raises(TableError, match="writing rows failed"):
        write_rows(block, docs.uri)


def test_rows_that_a_dead_run_wrote_but_never_committed_do_no_harm(docs: VectorTable) -> None:
    write_rows(rows(["lost"]), docs.uri)
    add(docs, ["lost", "b"])
    assert ids_in(docs) == ["b", "lost"]
    assert lance.dataset(docs.uri).validate() is None
