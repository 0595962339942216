"""A faulty row gets a reason and its neighbours survive; a faulty shard is named."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.errors import BadShard, CorpusError
from stella_ray.pipeline.cells import CorpusColumns, as_type
from stella_ray.pipeline.judge import sound_rows
from stella_ray.pipeline.shards import Shard, arrow_rows, read_shard

KEPT = {"year": pa.int64(), "score": pa.float64(), "at": pa.timestamp("us"), "on": pa.bool_()}


def read(path: Path, kept: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    shard = Shard(str(path), path.stat().st_size)
    fields = [pa.field(name, KEPT[name]) for name in kept]
    windows = read_shard(shard, 0, CorpusColumns(kept=kept), fields, 100)
    found: list[dict[str, Any]] = pa.concat_tables(windows).to_pylist()
    return found


def unsound(path: Path) -> list[dict[str, Any]]:
    """What is left out by the check before the encoder; the rows around the fault must not be."""
    shard = Shard(str(path), path.stat().st_size)
    (window,) = read_shard(shard, 0, CorpusColumns(), [], 100)
    sound = sound_rows(window)["row"].to_pylist()
    assert sound[0] == 0
    assert sound[-1] == window["row"][-1].as_py()
    return [row for row in window.to_pylist() if row["row"] not in sound]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("line", "doc_id", "reason"),
    [
        (b'{"id": "x", "text": null}', "x", None),
        (b'{"id": "x"}', "x", None),
        (b'{"id": "x", "text": ""}', "x", None),
        ('{"id": "x", "text": " \t\u3000\u2003"}'.encode(), "x", "not a line of JSON"),
        (' {"id": "x", "text": " \\t\u3000\u2003\u0085"}'.encode(), "x", None),
        (b'{"text": "t"}', None, None),
        (b'{"id": null, "text": "t"}', None, None),
        (b'{"id": "", "text": "t"}', "", None),
        (
            b'{"id": true, "text": "t"}',
            None,
            "the id is true or false, expected text or an integer",
        ),
        (b'{"id": 1.5, "text": "t"}', None, "the id is a number, expected text or an integer"),
        (b'{"id": [1], "text": "t"}', None, "the id is a list, expected text or an integer"),
        (b'{"id": "x", "text": 5}', "x", "the text is a number, expected text"),
        (b'{"id": "x", "text": ["t"]}', "x", "the text is a list, expected text"),
        (b'{"id": "x", "text": "\xff"}', "x", "invalid UTF-8 in the line at byte 21"),
        (b'{"id": "x\xff", "text": "t"}', "x\ufffd", "invalid UTF-8 in the line at byte 9"),
        (b'{"id": "x", "text": "\\ud800"}', "x", "not a line of JSON"),
        (b'{"id": "x", "text": "t"', None, "not a line of JSON"),
        (b'{"id": "x", "text": "t"} {}', None, "not a line of JSON"),
        (b'{"id": "x", "text": "t", "n": NaN}', "x", "not a line of JSON"),
        (b"plain words", None, "not a line of JSON"),
        (b"\x00\x00", None, "not a line of JSON"),
        (b"[1, 2]", None, "the line is a list, expected a JSON object"),
        (b'"text"', None, "the line is text, expected a JSON object"),
        (b"5", None, "the line is a number, expected a JSON object"),
        (b"null", None, "the line is null, expected a JSON object"),
    ],
)
def test_a_faulty_line_of_json_costs_only_itself(
    tmp_path: Path, line: bytes, doc_id: str | None, reason: str | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": 1, "text": "a"}\n' + line + b'\n{"id": 2, "text": "b"}\n')
    (row,) = unsound(path)
    assert (row["row"], row["doc_id"]) == (1, doc_id)
    assert (row["reason"] or "").startswith(reason or "")
    assert bool(row["reason"]) == bool(reason)
    assert "\n" not in (row["reason"] or "")


@pytest.mark.parametrize(
    ("line", "doc_id", "reason"),
    [
        (b"x,", "x", None),
        ("x,\u3000 ".encode(), "x", None),
        (b",t", None, None),
        (b"x", "x", "1 cells where the header has 2"),
        (b"x,t,u", "x", "3 cells where the header has 2"),
        (b"x,\xff\xfe", "x", "invalid UTF-8 in the text"),
        (b"x\xff,t", "x?", "invalid UTF-8 in the id"),
    ],
)
def test_a_faulty_row_of_csv_costs_only_itself(
    tmp_path: Path, line: bytes, doc_id: str | None, reason: str | None
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,a\n" + line + b"\n2,b\n")
    (row,) = unsound(path)
    assert (row["row"], row["doc_id"], row["reason"]) == (1, doc_id, reason)


def not_all_text(*cells: bytes | None) -> pa.Array:
    """A string column whose bytes needn't be UTF-8, as some writers leave them in parquet."""
    raw = pa.array(cells, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize(
    ("ids", "texts", "doc_id", "reason"),
    [
        (["1", None, "2"], ["a", "t", "b"], None, None),
        (["1", "", "2"], ["a", "t", "b"], "", None),
        (["1", "x", "2"], ["a", None, "b"], "x", None),
        (["1", "x", "2"], ["a", "", "b"], "x", None),
        (["1", "x", "2"], ["a", " \u3000\n", "b"], "x", None),
        (["1", "x", "2"], not_all_text(b"a", b"t\xff", b"b"), "x",
         "invalid UTF-8 in the text at byte 1"),
        (not_all_text(b"1", b"\xffx", b"2"), ["a", "t", "b"], "\ufffdx",
         "invalid UTF-8 in the id at byte 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_faulty_row_of_parquet_costs_only_itself(
    tmp_path: Path, ids: Any, texts: Any, doc_id: str | None, reason: str | None, dictionary: bool
) -> None:
    columns = [c if isinstance(c, pa.Array) else pa.array(c, pa.string()) for c in (ids, texts)]
    columns = [c.dictionary_encode() if dictionary else c for c in columns]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns, names=["id", "text"]), path)
    (row,) = unsound(path)
    assert (row["row"], row["doc_id"], row["reason"]) == (1, doc_id, reason)


def test_a_kept_cell_that_doesn_t_fit_costs_only_its_row(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"id": 1, "text": "a", "year": 2024, "score": 1, "at": "2024-01-02", "on": true}\n'
        '{"id": 2, "text": "a", "year": 1.5}\n{"id": 3, "text": "a", "year": "last"}\n'
        '{"id": 4, "text": "a", "year": [1]}\n{"id": 5, "text": "a", "score": "high"}\n'
        '{"id": 6, "text": "a", "at": "soon"}\n{"id": 7, "text": "a", "on": "maybe"}\n'
        '{"id": 8, "text": "a", "year": "2024", "score": "1.5", "on": "true"}\n',
        "utf-8",
    )
    found = read(lines, tuple(KEPT))
    assert [row["reason"] for row in found] == [
        None,
        "column year holds 1.5, expected int64",
        "column year holds 'last', expected int64",
        "column year holds [1], expected int64",
        "column score holds 'high', expected double",
        "column at holds 'soon', expected timestamp[us]",
        "column on holds 'maybe', expected bool",
        None,
    ]
    assert (found[7]["year"], found[7]["score"], found[7]["on"]) == (2024, 1.5, True)

    cells = tmp_path / "a.csv"
    cells.write_text("id,text,year\n1,a,2024\n2,a,x\n3,a,\n", "utf-8")
    found = read(cells, ("year",))
    assert [(row["year"], bool(row["reason"])) for row in found] == [
        (2024, False), (None, True), (None, False),
    ]  # fmt: skip

    at = pa.array([0, 0, 2**60, None], pa.timestamp("ms"))  # the third: beyond microseconds
    table = pa.table({"id": [1] * 4, "text": ["a"] * 4, "year": [2024.0, 1.5, 7, None], "at": at})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", ("year", "at"))
    assert [row["year"] for row in found] == [2024, None, 7, None]
    assert [(row["reason"] or "")[:20] for row in found] == [
        "", "column year holds 1.", "column at holds '<va", "",
    ]  # fmt: skip


cells = st.sampled_from(
    [1, -1, 1.5, 2.0, True, "5", "x", None, 2**63, 2**70, 1e300, "true", "2024-01-02", "中", "1.5"]
)
kinds = st.sampled_from([*KEPT.values(), pa.int32(), pa.uint8(), pa.float32(), pa.date32(),
                         pa.string(), pa.decimal128(10, 2)])  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(cells, min_size=1, max_size=5), kinds)
def test_what_becomes_of_a_kept_cell_doesn_t_depend_on_its_neighbours(
    values: list[Any], kind: pa.DataType
) -> None:
    def kept(cells: list[Any]) -> list[tuple[Any, str | None]]:
        reasons: list[str | None] = [None] * len(cells)
        column = as_type(cells, pa.field("c", kind), reasons)
        assert column.type == kind
        return list(zip(column.to_pylist(), reasons, strict=True))

    together = kept(values)
    assert together == [kept([value])[0] for value in values]
    for value, (cell, reason) in zip(values, together, strict=True):
        assert (cell is None) == (value is None or reason is not None)


# ---------------------------------------------------------------- shards


def parquet(**columns: Any) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out)
    return out.getvalue().to_pybytes()


LINES = b'{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n' * 500
TABLE = parquet(id=list(range(1000)), text=[f"text {i}" for i in range(1000)])
DOUBLED = pa.BufferOutputStream()
pq.write_table(pa.table([["1"], ["a"], ["b"]], names=["id", "text", "text"]), DOUBLED)
ZSTD = pa.compress(LINES, "zstd", asbytes=True)
WHOLE = "expected a whole file of that format"
EMPTY = "the shard is empty; expected at least one row"

FAULTS: dict[str, tuple[str, bytes, list[str]]] = {
    "jsonl without text": ("a.jsonl", b'{"id": 1, "body": "a"}\n', ["no column text", "id, body"]),
    "csv without the id": ("a.csv", b"key,text\n1,a\n", ["no column id", "key, text"]),
    "csv with other separators": ("a.csv", b"id;text\n1;a\n", ["no column id, text", "id;text"]),
    "parquet without both": ("a.parquet", parquet(a=[1]), ["no column id, text", "it has a"]),
    "csv with a column twice": ("a.csv", b"id,text,text\n1,a,b\n", ["several columns", "text"]),
    "parquet with a column twice": ("a.parquet", DOUBLED.getvalue().to_pybytes(),
                                    ["several columns are called text"]),
    "jsonl of numbers": ("a.jsonl", b'{"id": 1, "text": 5}\n{"id": 1, "text": true}\n',
                         ["column text is a number, true or false", "expected text"]),
    "jsonl with ids of halves": ("a.jsonl", b'{"id": 1.5, "text": "a"}\n',
                                 ["column id is a number", "expected text or integers"]),
    "parquet of numbers": ("a.parquet", parquet(id=[1], text=[5]), ["column text is int64"]),
    "parquet of lists": ("a.parquet", parquet(id=[1], text=[["a"]]), ["column text is list"]),
    "parquet of bytes": ("a.parquet", parquet(id=[1], text=[b"a"]), ["column text is binary"]),
    "parquet with ids of halves": ("a.parquet", parquet(id=[1.5], text=["a"]),
                                   ["column id is double", "expected text or integers"]),
    "zero bytes": ("a.jsonl", b"", [EMPTY]),
    "no rows in jsonl": ("a.jsonl", b"\n \n", [EMPTY]),
    "no rows in jsonl.gz": ("a.jsonl.gz", gzip.compress(b""), [EMPTY]),
    "no rows in csv": ("a.csv", b"id,text\n", [EMPTY]),
    "no rows in parquet": ("a.parquet", parquet(id=pa.array([], pa.string()),
                                                text=pa.array([], pa.string())), [EMPTY]),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(LINES)[:-9], ["jsonl", WHOLE]),
    "gzip cut in half": ("a.csv.gz", gzip.compress(b"id,text\n1,a\n" * 9)[:20], ["csv", WHOLE]),
    "truncated zstd": ("a.jsonl.zst", ZSTD[:-9], ["jsonl", WHOLE]),
    "not gzip at all": ("a.jsonl.gz", LINES, ["jsonl", WHOLE]),
    "gzip and then rubbish": ("a.jsonl.gz", gzip.compress(LINES) + b"rubbish", ["jsonl", WHOLE]),
    "truncated parquet": ("a.parquet", TABLE[:-9], ["parquet", WHOLE]),
    "parquet overwritten in the middle": ("a.parquet", TABLE[:99] + bytes(900) + TABLE[999:],
                                          ["parquet", WHOLE]),
    "text called parquet": ("a.parquet", b"id,text\n1,a\n", ["parquet", WHOLE]),
    "parquet called jsonl": ("a.jsonl", TABLE, ["expected one JSON object on each line"]),
    "a JSON array": ("a.jsonl", b'[{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]',
                     ["the line is a list", "expected one JSON object on each line"]),
    "pretty JSON": ("a.jsonl", b'{\n  "id": 1,\n  "text": "a"\n}\n', ["expected one JSON object"]),
    "a quote left open": ("a.csv", b'id,text\n1,"a\n2,b\n', ["csv", WHOLE]),
    "UTF-16": ("a.csv", "id,text\n1,a\n".encode("utf-16"), ["no column id, text"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_shard_is_named_with_what_was_found_and_expected(
    tmp_path: Path, fault: str
) -> None:
    name, data, words = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert [word for word in words if word not in said] == [], said
    assert "\n" not in said


def test_a_missing_kept_column_is_named(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", LINES), ("a.csv", b"id,text\n1,a\n"), ("a.parquet", TABLE)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorpusError, match="no column year; it has id, text"):
            read(tmp_path / name, ("year",))


def test_a_shard_that_went_away_and_one_that_is_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for name, said in (("gone.jsonl", "the shard is gone"), ("gone.parquet", "the shard is gone"),
                       ("folder.jsonl", "Is a directory")):  # fmt: skip
        with pytest.raises(CorpusError, match=f"{name}: .*{said}"):
            list(read_shard(Shard(str(tmp_path / name), 5), 0, CorpusColumns(), [], 10))


def test_a_dataset_without_the_columns_is_refused() -> None:
    with pytest.raises(CorpusError, match="the dataset: no column text; it has id"):
        arrow_rows("the dataset", pa.table({"id": [1]}), CorpusColumns(), [])
    with pytest.raises(CorpusError, match="the dataset: column text is int64, expected text"):
        arrow_rows("the dataset", pa.table({"id": [1], "text": [1]}), CorpusColumns(), [])


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_before_the_damage_count_whatever_the_window(tmp_path: Path, form: str) -> None:
    lines = [f'{{"id": "{i}", "text": "t{i * i}"}}' for i in range(900)]
    if form == "csv":
        lines = ["id,text", *(f"{i},t{i * i}" for i in range(900))]
    whole = gzip.compress("\n".join(lines).encode())
    path = tmp_path / f"a.{form}.gz"
    path.write_bytes(whole[: len(whole) // 2])
    expected = [{"doc_id": str(i), "text": f"t{i * i}"} for i in range(900)]
    found = []
    for window in (7, 8_192):
        rows: list[dict[str, Any]] = []
        windows = read_shard(Shard(str(path), 1), 0, CorpusColumns(), [], window)
        with pytest.raises(BadShard, match="can't be read"):
            rows.extend(row for part in windows for row in part.to_pylist())
        found.append([{"doc_id": row["doc_id"], "text": row["text"]} for row in rows])
    assert 0 < len(found[0]) < 900
    assert found[0] == found[1] == expected[: len(found[0])]
