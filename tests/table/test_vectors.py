"""Opening and creating tables, their names, their schema, and the keys they hand out."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest

from stella_ray.errors import TableError
from stella_ray.rows import DOC_BYTES, TEXT_BYTES, key_array, table_schema
from stella_ray.table.fragments import reason, write_rows
from stella_ray.table.index import tidy
from stella_ray.table.keys import KnownKeys
from stella_ray.table.publish import publish
from stella_ray.table.vectors import ENCODER as ENCODER_KEY
from stella_ray.table.vectors import VectorTable, table_uri
from tests.table.conftest import ENCODER, SCHEMA, TITLE, add, addresses_of, ids_in, numbered, rows


@pytest.mark.parametrize("name", ["db/docs", "db/docs.lance", "db/docs/", "db/docs.lance/"])
def test_all_ways_to_write_a_table_name_mean_one_place(name: str) -> None:
    assert table_uri(name) == "db/docs.lance"


def test_a_table_name_may_hold_dots_dashes_and_lie_in_a_bucket_or_a_folder_of_any_name() -> None:
    assert table_uri("s3://bucket/docs") == "s3://bucket/docs.lance"
    assert table_uri("s3://bucket/deep/v1.2_a-b") == "s3://bucket/deep/v1.2_a-b.lance"
    assert table_uri("/数据 库/../docs") == "/数据 库/../docs.lance"


@pytest.mark.parametrize(
    "name",
    [
        "docs", "", "/", "/docs", "db/.lance", "db/..", "db/.", "db/a b", "db/文档", "db/a'b",
        "db/a\nb", "db/a\n", "s3://bucket", "s3://bucket/", "db/a:b",
    ],
)  # fmt: skip
def test_a_name_that_lancedb_refuses_is_refused_with_what_is_expected(name: str) -> None:
    with pytest.raises(TableError, match="expected DIR/NAME, the name of letters, digits"):
        table_uri(name)


@pytest.mark.parametrize("name", ["v1.2", "a-b_c", "-", "x.lance", "...", "A1"])
def test_lancedb_finds_a_table_by_every_name_that_is_accepted(tmp_path: Path, name: str) -> None:
    table = VectorTable.create(table_uri(f"{tmp_path}/{name}"), SCHEMA, ENCODER)
    opened = lancedb.connect(tmp_path).open_table(name.removesuffix(".lance"))
    assert opened.schema.names == table.dataset.schema.names


def test_lancedb_opens_a_table_with_the_schema_of_the_design(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    table = lancedb.connect(Path(docs.uri).parent).open_table("docs")
    assert table.count_rows() == 2
    assert table.schema.remove_metadata() == pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("title", pa.string()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), 8)),
            pa.field("n_tokens", pa.int32()),
            pa.field("truncated", pa.bool_()),
            pa.field("row_key", pa.binary(16)),
            pa.field("run_id", pa.string()),
        ]
    )
    assert json.loads(table.schema.metadata[ENCODER_KEY]) == ENCODER == docs.encoder()


def test_vectors_can_be_float16_and_the_text_left_out(tmp_path: Path) -> None:
    schema = table_schema([], False, 8, pa.float16())
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    add(table, ["a"], schema=schema)
    found = lancedb.connect(tmp_path).open_table("t")
    assert found.schema.field("vector").type == pa.list_(pa.float16(), 8)
    assert "text" not in found.schema.names
    assert found.to_arrow()["vector"].combine_chunks().flatten().to_numpy().shape == (8,)


def test_the_columns_come_back_as_they_were_written(docs: VectorTable) -> None:
    block = rows(["a", "b", "c"], titles=["甲", None, ""])
    add(docs, ["a", "b", "c"], titles=["甲", None, ""])
    assert docs.dataset.to_table().replace_schema_metadata(None).equals(block)


def test_a_table_is_made_with_its_folders_and_opens_in_another_process_at_once(
    tmp_path: Path,
) -> None:
    uri = f"{tmp_path}/deep/er/docs.lance"
    assert VectorTable.open_if_there(uri) is None
    made = VectorTable.create(uri, SCHEMA, ENCODER)
    again = VectorTable.open_if_there(uri)
    assert again is not None
    assert (made.version, again.version, again.dataset.count_rows()) == (1, 1, 0)


@pytest.mark.parametrize("name", ["数据 库", "a%20b", "a#b?c=d", "it's [x] {y} *~", "a.lance"])
def test_a_folder_of_any_name_holds_the_whole_table(tmp_path: Path, name: str) -> None:
    uri = table_uri(f"{tmp_path}/{name}/docs")
    table = add(add(VectorTable.create(uri, SCHEMA, ENCODER), ["a", "b"]), ["c"])
    table.commit(write_rows(rows(["d"]), uri), addresses_of(table, ["a"]))
    tidy(table)
    publish(table, "r")
    assert ids_in(VectorTable.open(uri, "live")) == ["b", "c", "d"]
    # Lance's tags leave an empty folder of the percent-encoded name beside it.
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path).parts[0] for path in files} == {name}


def test_a_table_is_never_created_over_another(docs: VectorTable) -> None:
    add(docs, ["a"])
    with pytest.raises(TableError, match="creating the table failed: Dataset already exists"):
        VectorTable.create(docs.uri, SCHEMA, ENCODER)
    assert VectorTable.open(docs.uri).dataset.count_rows() == 1


def test_a_table_can_be_opened_by_number_and_by_tag(docs: VectorTable) -> None:
    add(docs, ["a"])
    docs.dataset.tags.create("live", 1)
    assert VectorTable.open(docs.uri).version == 2
    assert VectorTable.open(docs.uri, 1).version == 1
    assert VectorTable.open(docs.uri, "live").version == 1
    assert VectorTable.open(docs.uri, "live").tagged() == {"live": 1}


@pytest.mark.parametrize("version", [77, "gone"])
def test_a_missing_version_says_where_to_look(docs: VectorTable, version: int | str) -> None:
    with pytest.raises(TableError, match=r"no version .*; see jobs/publish.py status --table"):
        VectorTable.open(docs.uri, version)


@pytest.mark.parametrize("folder", ["here", "version 2", "was not found"])
@pytest.mark.parametrize("version", [None, "live"])
def test_a_missing_table_says_what_writes_one(
    tmp_path: Path, folder: str, version: str | None
) -> None:
    uri = f"{tmp_path}/{folder}/docs.lance"
    with pytest.raises(TableError) as caught:
        VectorTable.open(uri, version)
    assert str(caught.value) == f"{uri}: no such table; write one with jobs/embed.py --table"


def test_an_empty_folder_counts_as_no_table(tmp_path: Path) -> None:
    (tmp_path / "docs.lance").mkdir()
    uri = f"{tmp_path}/docs.lance"
    assert VectorTable.open_if_there(uri) is None
    with pytest.raises(TableError, match="no such table"):
        VectorTable.open(uri)
    assert VectorTable.create(uri, SCHEMA, ENCODER).version == 1


def test_a_creation_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "docs.lance/_transactions").mkdir(parents=True)
    (tmp_path / "docs.lance/_transactions/0-1234.txn").write_bytes(b"half")
    (tmp_path / "docs.lance/_versions").mkdir()
    uri = f"{tmp_path}/docs.lance"
    assert VectorTable.open_if_there(uri) is None
    assert add(VectorTable.create(uri, SCHEMA, ENCODER), ["a"]).dataset.count_rows() == 1


def test_a_file_or_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.lance").write_text("mine")
    (tmp_path / "folder.lance").mkdir()
    (tmp_path / "folder.lance/mine.txt").write_text("mine")
    for uri in (f"{tmp_path}/file.lance", f"{tmp_path}/folder.lance"):
        for opened in (VectorTable.open_if_there, VectorTable.open):
            with pytest.raises(TableError) as caught:
                opened(uri)
            assert str(caught.value) == (
                f"{uri}: exists and is not a Lance table; give another --table"
            )
    assert (tmp_path / "file.lance").read_text() == "mine"
    assert [path.name for path in (tmp_path / "folder.lance").iterdir()] == ["mine.txt"]


def test_a_damaged_table_is_one_line_with_lances_words(docs: VectorTable) -> None:
    for manifest in Path(docs.uri, "_versions").glob("*"):
        manifest.write_bytes(b"junk")
    with pytest.raises(TableError, match=r"not a readable Lance table \(.*junk.*\)$") as caught:
        VectorTable.open(docs.uri)
    assert "\n" not in str(caught.value)
    assert ".rs:" not in str(caught.value)


def test_a_lance_table_of_somebody_else_is_opened_but_has_no_encoder(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"id": [1]}), f"{tmp_path}/theirs.lance")
    table = VectorTable.open(f"{tmp_path}/theirs.lance")
    with pytest.raises(TableError, match=r"a Lance table that jobs/embed\.py did not write"):
        table.encoder()


def test_a_lost_data_file_is_a_table_error_that_says_what_was_being_done(
    docs: VectorTable,
) -> None:
    add(docs, ["a"])
    for path in Path(docs.uri, "data").iterdir():
        path.unlink()
    with pytest.raises(TableError, match=r"docs\.lance: reading the keys failed: ") as caught:
        VectorTable.open(docs.uri).known()
    assert "\n" not in str(caught.value)
    assert ".rs:" not in str(caught.value)


def test_reason_is_the_first_line_without_places_in_lances_source() -> None:
    error = ValueError("No: not here, /home/ci/rust/lance/src/a.rs:1:2, rust/b.rs:33:4\nand more")
    assert reason(error) == "No: not here"


def known_keys(*keys: bytes) -> KnownKeys:
    array = np.sort(np.array(keys, "S16"))
    return KnownKeys(1, array, np.arange(len(array), dtype=np.uint64))


def test_a_key_is_found_where_it_stands_and_nowhere_else() -> None:
    known = known_keys(b"b" * 16, b"d" * 16, b"f" + bytes(15))
    wanted = np.array([b"d" * 16, b"a" * 16, b"z" * 16, b"f" + bytes(15), b"b" * 16], "S16")
    assert known.find(wanted).tolist() == [1, -1, -1, 2, 0]


def test_a_key_is_found_by_its_document_and_text_alone() -> None:
    same_text, kept = bytes(range(1, 13)), b"\x00\x00\x00\x00"
    known = known_keys(same_text + b"\x09\x09\x09\x09", b"\xff" * 16, bytes(16))
    wanted = np.array([same_text + kept, same_text + b"\xff\xff\xff\xff", b"\xfe" * 16], "S16")
    assert known.find(wanted).tolist() == [-1, -1, -1]
    assert known.find(wanted, DOC_BYTES + TEXT_BYTES).tolist() == [1, 1, -1]
    assert wanted[1] == same_text + b"\xff\xff\xff\xff", "`find` writes into nothing it is given"


def test_nothing_is_found_in_an_empty_table(docs: VectorTable) -> None:
    known = docs.known()
    assert (len(known.keys), len(known.addresses), known.version) == (0, 0, 1)
    assert known.find(np.array([b"x" * 16, b""], "S16")).tolist() == [-1, -1]


def test_find_agrees_with_a_dictionary_on_many_keys(docs: VectorTable) -> None:
    add(docs, numbered(3_000))
    known = docs.known()
    position = {key: i for i, key in enumerate(known.keys.tolist())}
    wanted = key_array(rows(numbered(3_000, first=1_500)))
    expected = [position.get(key, -1) for key in wanted.tolist()]
    assert known.find(wanted).tolist() == expected
    assert sum(at >= 0 for at in expected) == 1_500


def test_no_kept_columns_are_needed(tmp_path: Path) -> None:
    schema = table_schema([], True, 8, pa.float32())
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    assert add(table, ["a"], schema=schema).dataset.count_rows() == 1
    assert TITLE[0].name not in table.dataset.schema.names
