"""Shards of every format and compression give the same rows, window by window."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.formats import shard_format
from stella_ray.pipeline.shards import BYTES_PER_WINDOW, Shard, arrow_rows, read_shard
from stella_ray.rows import source

Rows = list[dict[str, Any]]

ROWS: Rows = [
    {"id": "1", "text": "一"},
    {"id": "18446744073709551615", "text": "a\u2028b\u2029c\u0085d\u000b\u000c\u001c"},
    {"id": "a\"b'c,d", "text": 'he said "no", twice'},
    {"id": "two\nlines", "text": "one\r\ntwo\nthree\r"},
    {"id": "👩‍👩‍👧‍👦", "text": "🀄 \u007f \u0001 tab\t"},
    {"id": "x" * 4096, "text": "长" * 5000},
    {"id": " 7 ", "text": "  spaces stay  "},
    {"id": "\ufeff8", "text": "\ufeffmark"},
]


def jsonl(rows: Rows) -> bytes:
    lines = (json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows))
    return "".join(f"{line}\n" for line in lines).encode()


def table_of_commas(rows: Rows) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def gzipped(data: bytes) -> bytes:
    """Three members, one of them empty, cut in the middle of a line."""
    cut = len(data) // 2 + 1
    return b"".join(gzip.compress(x, compresslevel=1) for x in (data[:cut], b"", data[cut:]))


def zstd(data: bytes) -> bytes:
    """Several frames, cut in the middle of a line."""
    cut = len(data) // 2 + 1
    return b"".join(pa.compress(x, "zstd", asbytes=True) for x in (data[:cut], data[cut:]))


def parquet(rows: Rows, kind: pa.DataType | None = None) -> bytes:
    table = pa.Table.from_pylist(rows)
    if kind:
        table = pa.table({name: table[name].combine_chunks().cast(kind) for name in ("id", "text")})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=3)
    return out.getvalue()


FILES: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": jsonl,
    "a.ndjson": jsonl,
    "a.jsonl.gz": lambda rows: gzipped(jsonl(rows)),
    "a.ndjson.zst": lambda rows: zstd(jsonl(rows)),
    "a.csv": table_of_commas,
    "a.csv.gz": lambda rows: gzipped(table_of_commas(rows)),
    "a.csv.zst": lambda rows: zstd(table_of_commas(rows)),
    "a.parquet": parquet,
    "wide.parquet": lambda rows: parquet(rows, pa.large_string()),
    "view.parquet": lambda rows: parquet(rows, pa.string_view()),
    "dictionary.parquet": lambda rows: parquet(rows, pa.dictionary(pa.int32(), pa.string())),
}


def windows(path: Path, window_rows: int = 100, kept: tuple[pa.Field, ...] = ()) -> list[pa.Table]:
    shard = Shard(str(path), path.stat().st_size)
    columns = CorpusColumns(kept=tuple(field.name for field in kept))
    return list(read_shard(shard, 3, columns, kept, window_rows))


def rows_of(path: Path, data: bytes, kept: tuple[pa.Field, ...] = ()) -> list[dict[str, Any]]:
    path.write_bytes(data)
    found: list[dict[str, Any]] = pa.concat_tables(windows(path, kept=kept)).to_pylist()
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    found = rows_of(tmp_path / name, FILES[name](ROWS))
    assert [(row["doc_id"], row["text"]) for row in found] == [tuple(r.values()) for r in ROWS]
    assert [row["row"] for row in found] == list(range(len(ROWS)))
    assert {row["shard"] for row in found} == {3}
    assert {row["reason"] for row in found} == {None}


@pytest.mark.parametrize("name", FILES)
def test_windows_hold_at_most_their_rows_and_share_out_the_file_s_bytes(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name]([{"id": str(i), "text": f"第{i}篇" * 40} for i in range(100)]))
    cut = windows(path, window_rows=7)
    assert all(0 < len(window) <= 7 for window in cut)
    assert all(window.schema == source([]) for window in cut)
    together = pa.concat_tables(cut).to_pydict()
    assert together["row"] == list(range(100))
    assert together["doc_id"] == [str(i) for i in range(100)]
    assert sum(together["shard_bytes"]) == pytest.approx(path.stat().st_size, rel=0.01)
    assert all(0 <= seconds < 10 for seconds in together["read_seconds"])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_window_ends_early_where_documents_are_long(tmp_path: Path, name: str) -> None:
    path, size = tmp_path / name, 1 << 20
    path.write_bytes(
        FILES[name]([{"id": str(i), "text": f"{i}长" * (size // 4)} for i in range(12)])
    )
    cut = windows(path, window_rows=512)
    assert sum(len(window) for window in cut) == 12
    assert len(cut) > 1
    assert all(window["text"].nbytes <= BYTES_PER_WINDOW + 2 * size for window in cut)


def test_ids_may_be_integers(tmp_path: Path) -> None:
    ids = [0, -5, 2**63 - 1, -(2**63)]
    rows = [{"id": i, "text": "x"} for i in ids]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        found = rows_of(tmp_path / name, FILES[name](rows))
        assert [row["doc_id"] for row in found] == [str(i) for i in ids]
    large = [2**64 - 1, 0]
    assert [row["doc_id"] for row in rows_of(tmp_path / "b.jsonl", jsonl(
        [{"id": i, "text": "x"} for i in large]))] == [str(i) for i in large]  # fmt: skip
    for column in (pa.array(large, pa.uint64()), pa.array([7, 8], pa.int8()).dictionary_encode()):
        pq.write_table(pa.table({"id": column, "text": ["x", "x"]}), tmp_path / "c.parquet")
        found = pa.concat_tables(windows(tmp_path / "c.parquet")).to_pylist()
        assert [row["doc_id"] for row in found] == [str(i) for i in column.to_pylist()]


def test_blank_lines_marks_and_line_ends_are_no_rows(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    lines = (
        mark
        + b'{"id": 1, "text": "a"}\r\n\r\n \t\n{"id": 2, "text": "b"}\n\n{"id": 3, "text": "c"}'
    )
    found = rows_of(tmp_path / "a.jsonl", lines)
    assert [(r["row"], r["doc_id"], r["text"]) for r in found] == [
        (0, "1", "a"), (3, "2", "b"), (5, "3", "c"),
    ]  # fmt: skip
    cells = mark + b'id,text\r\n1,a\r\n\r\n2,"b\r\nb"\r\n\r\n3,c'
    found = rows_of(tmp_path / "a.csv", cells)
    assert [(r["row"], r["doc_id"], r["text"]) for r in found] == [
        (0, "1", "a"), (1, "2", "b\r\nb"), (2, "3", "c"),
    ]  # fmt: skip


def test_columns_may_have_any_name_and_order(tmp_path: Path) -> None:
    columns = CorpusColumns(doc_id="编号", text="a.body")
    rows = [{"x": 1, "a.body": "t", "a": "no", "编号": 5}]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        path = tmp_path / name
        path.write_bytes(FILES[name](rows))
        shard = Shard(str(path), path.stat().st_size)
        (window,) = read_shard(shard, 0, columns, [], 10)
        assert window.select(["doc_id", "text"]).to_pylist() == [{"doc_id": "5", "text": "t"}]


def test_kept_columns_come_in_the_table_s_types(tmp_path: Path) -> None:
    types = {"year": pa.int64(), "score": pa.float64(), "tag": pa.string()}
    types |= {"at": pa.timestamp("us"), "good": pa.bool_()}
    kept = tuple(pa.field(name, kind) for name, kind in types.items())
    rows = [{"id": "1", "text": "x", "year": 2024, "score": 1.5, "tag": "é",
             "at": "2024-01-02T03:04:05", "good": True},
            {"id": "2", "text": "x", "year": None, "score": None, "tag": None, "at": None,
             "good": None}]  # fmt: skip
    text_rows = [{k: "" if v is None else str(v).lower() if k == "good" else v
                  for k, v in row.items()} for row in rows]  # fmt: skip
    first = rows_of(tmp_path / "a.jsonl", jsonl(rows), kept)
    for name, data in (("a.parquet", parquet(rows)), ("a.csv", table_of_commas(text_rows))):
        found = rows_of(tmp_path / name, data, kept)
        for a, b in zip(first, found, strict=True):
            assert [a[f.name] or None for f in kept] == [b[f.name] or None for f in kept]
            assert b["reason"] is None
    assert first[0]["year"] == 2024
    assert first[0]["at"].isoformat() == "2024-01-02T03:04:05"


def test_rows_in_memory_are_read_like_a_parquet_shard_s() -> None:
    block = pa.table({"id": [1, None], "text": ["a", None], "more": [0, 0]})
    found = arrow_rows("the dataset", block, CorpusColumns(), [])
    assert found.schema == source([])
    assert found.select(["shard", "row", "doc_id", "text"]).to_pylist() == [
        {"shard": -1, "row": -1, "doc_id": "1", "text": "a"},
        {"shard": -1, "row": -1, "doc_id": None, "text": None},
    ]
    assert len(arrow_rows("the dataset", block.slice(2), CorpusColumns(), [])) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", ("parquet", None)), ("a.ndjson", ("jsonl", None)),
        ("a.b.jsonl.gz", ("jsonl", "gzip")), ("a.csv.zst", ("csv", "zstd")),
        ("a.parquet.gz", None), ("a.json", None), ("a.gz", None), ("jsonl", None),
        ("a.csv.bz2", None),
    ],
)  # fmt: skip
def test_a_file_s_name_says_its_format(name: str, expected: tuple[str, str | None] | None) -> None:
    assert shard_format(name) == expected


@pytest.mark.skipif(not Path("/proc").exists(), reason="the peak is read from /proc")
def test_large_shards_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """Twice 96 MB of megabyte documents through a reader that may take 8 MB at once."""
    rows = [{"id": str(i), "text": f"{i:07} " * (1 << 17)} for i in range(96)]
    # One row group in pages of one document: a page is the least that Arrow reads.
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", write_batch_size=1)
    (tmp_path / "c.jsonl.zst").write_bytes(zstd(jsonl(rows)))
    (tmp_path / "a.csv").write_bytes(table_of_commas(rows[:1]))
    code = r"""
        import re, sys
        from pathlib import Path
        from stella_ray.pipeline.cells import CorpusColumns
        from stella_ray.pipeline.shards import Shard, read_shard

        for path in sorted(Path(sys.argv[1]).iterdir()):
            shard = Shard(str(path), path.stat().st_size)
            rows = sum(len(window) for window in read_shard(shard, 0, CorpusColumns(), [], 8192))
            peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
            print(rows, int(peak[1]) >> 10)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (_, before), (first, then), (second, at_last) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    assert first == second == 96
    assert max(then, at_last) - before < 64, f"{before}, {then}, {at_last} MB"
