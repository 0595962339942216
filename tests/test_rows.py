"""What a row holds, and the key that says whether it is known."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.errors import CorpusError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.shards import Shard, read_shard
from stella_ray.rows import (
    DOC_BYTES,
    KEPT_BYTES,
    KEY_BYTES,
    RESERVED,
    TEXT_BYTES,
    check,
    embedded,
    key_array,
    prepared,
    row_keys,
    source,
    table_schema,
)

quick = settings(deadline=None, max_examples=30)


def block(ids: Any, texts: Any, **kept: Any) -> pa.Table:
    def column(cells: Any) -> Any:
        return cells if isinstance(cells, pa.Array | pa.ChunkedArray) else pa.array(cells)

    strings = [pa.array(cells, pa.string()) for cells in (ids, texts)]
    return pa.table(
        {"doc_id": strings[0], "text": strings[1], **{k: column(v) for k, v in kept.items()}}
    )


def keys(table: pa.Table, fingerprint: str = "f") -> list[bytes]:
    kept = [name for name in table.column_names if name not in ("doc_id", "text")]
    found: list[bytes] = row_keys(table, kept, fingerprint).to_pylist()
    return found


def parts(key: bytes) -> dict[str, bytes]:
    return {"id": key[:7], "text": key[7:12], "kept": key[12:]}


def one_key(doc_id: str, text: str, fingerprint: str = "f", **kept: Any) -> bytes:
    return keys(block([doc_id], [text], **{k: [v] for k, v in kept.items()}), fingerprint)[0]


# ---------------------------------------------------------------- parts of a key


def test_a_key_is_seven_bytes_of_id_five_of_text_and_four_of_kept_columns() -> None:
    assert (DOC_BYTES, TEXT_BYTES, KEPT_BYTES, KEY_BYTES) == (7, 5, 4, 16)
    key = one_key("1", "一")
    assert len(key) == 16
    assert parts(key)["kept"] == bytes(4)


def test_keys_stay_what_they_were_in_tables_that_exist() -> None:
    """A changed hash would embed every table of the world anew."""
    found = [
        one_key("1", "一", "f").hex(),
        one_key("doc-é", "a b", "f", year=2024, tag=None).hex(),
    ]
    assert found == ["108a8837b7654be9969191d400000000", "bc8efcb57f04be571f7e666b7a1b836e"]


@pytest.mark.parametrize(
    ("other", "part"),
    [
        ({"doc_id": "2"}, "id"),
        ({"text": "二"}, "text"),
        ({"fingerprint": "g"}, "text"),
        ({"year": 2025}, "kept"),
        ({"year": None}, "kept"),
    ],
)
def test_each_part_changes_with_what_it_stands_for_and_with_nothing_else(
    other: dict[str, Any], part: str
) -> None:
    same = {"doc_id": "1", "text": "一", "fingerprint": "f", "year": 2024}
    before, after = parts(one_key(**same)), parts(one_key(**(same | other)))
    assert [name for name in before if before[name] != after[name]] == [part]


# ---------------------------------------------------------------- forms of the same cells

texts = st.text(st.characters(codec="utf-8"), max_size=20)


@quick
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=20), st.data())
def test_chunks_slices_and_wide_strings_give_the_same_keys(
    rows: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    ids, bodies, tags = ([row[i] for row in rows] for i in range(3))
    plain = block(ids, bodies, tag=tags)
    expected = keys(plain)
    assert expected == [one_key(*row[:2], tag=row[2]) for row in rows]

    cut = data.draw(st.integers(0, len(rows)))
    assert keys(plain.slice(cut)) == expected[cut:]
    assert keys(plain.slice(0, cut)) == expected[:cut]
    assert keys(pa.concat_tables([plain.slice(0, cut), plain.slice(cut)])) == expected
    padded = pa.concat_tables([block(["x"], ["y"], tag=["z"]), plain]).combine_chunks()
    assert keys(padded.slice(1)) == expected
    wide = plain.cast(pa.schema([(name, pa.large_string()) for name in plain.column_names]))
    assert keys(wide) == expected


@quick
@given(st.lists(st.tuples(st.none() | texts, st.none() | texts), min_size=2, max_size=2))
def test_kept_columns_never_run_into_each_other(rows: list[tuple[str, str]]) -> None:
    table = block(["1", "1"], ["t", "t"], a=pa.array([r[0] for r in rows], pa.string()),
                  b=pa.array([r[1] for r in rows], pa.string()))  # fmt: skip
    first, second = keys(table)
    assert (first == second) == (rows[0] == rows[1])


@pytest.mark.parametrize(
    "pair", [("a\x1f", "b", "a", "\x1fb"), (None, "a", "", "a"), ("\x00", "", None, "")]
)
def test_separators_in_cells_and_nulls_are_told_apart(pair: tuple[str | None, ...]) -> None:
    first, second = pair[:2], pair[2:]
    kind = pa.string()
    table = block(["1"] * 2, ["t"] * 2, a=pa.array([first[0], second[0]], kind),
                  b=pa.array([first[1], second[1]], kind))  # fmt: skip
    assert len(set(keys(table))) == 2


@pytest.mark.parametrize(
    ("cells", "other"),
    [
        ([1, 2, None], 3),
        ([1.5, float("inf"), None], 1.25),
        ([True, False, None], None),
        ([datetime.datetime(2024, 1, 2, 3, 4, 5, 6), datetime.datetime(1960, 1, 1), None], None),
        ([datetime.date(2024, 1, 2), None], datetime.date(2024, 1, 3)),
        ([[1, 2], [], None, [None]], [2, 1]),
        ([["a", 'b"'], ["a,b"], None], ["a", "b"]),
        ([{"a": 1, "b": "x"}, {"a": None, "b": ""}, None], {"a": 1, "b": "y"}),
        ([decimal.Decimal("1.50"), None], decimal.Decimal("1.51")),
        ([b"abc", b"\xff", None], b"abd"),
        ([datetime.timedelta(seconds=1), None], datetime.timedelta(seconds=2)),
    ],
)
def test_kept_columns_of_every_type_count_and_don_t_depend_on_their_neighbours(
    cells: list[Any], other: Any
) -> None:
    column = pa.array([*cells, other])
    n = len(column)
    together = keys(block(["1"] * n, ["t"] * n, kept=column))
    alone = [keys(block(["1"], ["t"], kept=column.slice(i, 1)))[0] for i in range(n)]
    assert together == alone
    assert len(set(together)) == len({str(cell) for cell in [*cells, other]})


def test_ids_of_emoji_and_of_four_kilobytes_are_like_any_other() -> None:
    ids = ["👩‍👩‍👧‍👦", "x" * 4096, "x" * 4095 + "y", "", "a\n\"'", "\x00", "1", "01", "\ufeff1"]
    found = keys(block(ids, ["t"] * len(ids)))
    assert len({parts(key)["id"] for key in found}) == len(ids)


def test_null_counts_as_empty_in_id_and_text() -> None:
    assert keys(block([None], [None])) == keys(block([""], [""]))


def test_an_empty_block_has_no_keys() -> None:
    nothing = block(["1"], ["t"], year=[1], tags=[["a"]]).slice(1)
    for table in (nothing, nothing.combine_chunks(), nothing.schema.empty_table()):
        assert keys(table) == []
        assert key_array(pa.table({"row_key": row_keys(table, [], "f")})).tolist() == []


def test_all_file_formats_give_the_same_keys(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f'第{i}篇,"x"\n', "tag": f"t{i % 2}"} for i in range(5)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    cells = "".join(f'{r["id"]},"{r["text"].replace(chr(34), chr(34) * 2)}",{r["tag"]}\n'
                    for r in rows)  # fmt: skip
    (tmp_path / "c.csv").write_text(f"id,text,tag\n{cells}", encoding="utf-8", newline="")
    table = pa.Table.from_pylist([{**row, "id": int(row["id"])} for row in rows])
    pq.write_table(table.set_column(2, "tag", table["tag"].dictionary_encode()),
                   tmp_path / "d.parquet", row_group_size=2)  # fmt: skip

    columns, kept = CorpusColumns(kept=("tag",)), [pa.field("tag", pa.string())]
    found = []
    for path in sorted(tmp_path.iterdir()):
        shard = Shard(str(path), path.stat().st_size)
        windows = list(read_shard(shard, 0, columns, kept, window_rows=2))
        found.append([key for w in windows for key in row_keys(w, ["tag"], "f").to_pylist()])
    assert all(len(file) == 5 for file in found)
    assert found[0] == found[1] == found[2] == found[3]


# ---------------------------------------------------------------- keys as NumPy arrays


def test_key_array_reads_slices_chunks_and_batches() -> None:
    column = row_keys(block([str(i) for i in range(9)], ["t"] * 9), [], "f")
    table = pa.table({"row_key": column})
    expected = column.to_pylist()

    def whole(array: np.ndarray) -> list[bytes]:
        return [bytes(array[i : i + 1].view(np.uint8)) for i in range(len(array))]

    assert key_array(table).dtype == np.dtype("S16")
    assert whole(key_array(table)) == expected
    assert whole(key_array(table.slice(3, 4))) == expected[3:7]
    split = pa.concat_tables([table.slice(0, 2), table.slice(5)])
    assert whole(key_array(split)) == expected[:2] + expected[5:]
    assert whole(key_array(table.to_batches()[0].slice(8))) == expected[8:]
    assert len(key_array(table.slice(9))) == 0
    assert len(key_array(table.schema.empty_table())) == 0


# ---------------------------------------------------------------- schemas


def test_check_orders_and_casts() -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    table = pa.table({"c": [0], "b": pa.array(["x"], pa.large_string()), "a": [1]})
    assert check(table, schema, "x.parquet").schema == schema


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"a": [1]}), ["x.parquet", "no column ['b']", "['a']"]),
        (pa.table({"a": [2**40], "b": ["x"]}), ["x.parquet", "not in range"]),
        (pa.table({"a": [1], "b": [[1]]}), ["x.parquet", "Unsupported cast"]),
    ],
)
def test_check_names_the_file_and_what_is_wrong_in_one_line(
    table: pa.Table, words: list[str]
) -> None:
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    with pytest.raises(CorpusError) as caught:
        check(table, schema, "x.parquet")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_no_schema_has_a_name_twice_and_every_own_name_is_reserved() -> None:
    kept = [pa.field("year", pa.int64())]
    before = prepared(kept, True, pa.uint16())
    for schema in (source(kept), before, embedded(before),
                   table_schema(kept, True, 4, pa.float16())):  # fmt: skip
        assert len(set(schema.names)) == len(schema.names)
        assert set(schema.names) - {"year"} <= RESERVED
    assert "text" not in prepared([], False, pa.uint16()).names
    assert "text" not in table_schema([], False, 4, pa.float32()).names
