"""Reading one shard: parquet, jsonl or csv, each row with its place, each fault with its reason.

Our own readers, because Ray's merge files, don't know a row's number and die of one bad line. What
is wrong with a whole shard raises `BadShard`; what is wrong with a row becomes its `reason`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from stella_ray.errors import BadShard
from stella_ray.pipeline.cells import (
    CorpusColumns,
    as_type,
    check_columns,
    empty_shard,
    valid_utf8,
)
from stella_ray.pipeline.lines import read_csv, read_jsonl
from stella_ray.pipeline.reading import reading
from stella_ray.rows import check, source
from stella_ray.storage import StorageSettings

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

BAD_FOR_A_LOOK = 8
"""Bad shards of a format in a row after which it isn't the shards but what we look for in them."""

BYTES_PER_WINDOW = 8 << 20
"""Text at which a window ends early, so that megabyte documents don't fill the memory."""


@dataclass(frozen=True)
class Shard:
    """One file of a corpus."""

    path: str
    bytes: int
    stamp: str | None = None
    """What the store says that differs once the content does, see `stamps.stamp_of`."""


def shard_format(path: str) -> tuple[str, str | None] | None:
    """The format and compression by a file's name; None where it isn't one that is read here."""
    compression = next((c for end, c in COMPRESSIONS.items() if path.endswith(end)), None)
    stem = path.rpartition(".")[0] if compression else path
    form = next((form for end, form in FORMATS.items() if stem.endswith(end)), None)
    return None if form is None or (form == "parquet" and compression) else (form, compression)


def read_shard(
    shard: Shard,
    number: int,
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    window_rows: int,
    storage: StorageSettings = StorageSettings(),
) -> Generator[pa.Table, None, None]:
    """Yield a shard's rows in windows of the schema `rows.source(kept)`, in constant memory.

    Args:
        shard: the file.
        number: its index in the corpus, written into each row.
        columns: which columns to read.
        kept: the kept columns as the table has them.
        window_rows: rows of a window at most.
        storage: where S3 is.

    Raises:
        CorpusError: the store doesn't give it.
        BadShard: the shard can't be read, is empty, lacks a column, or its text isn't text.
    """
    form, compression = shard_format(shard.path) or ("unknown", None)
    if not shard.bytes:
        raise empty_shard(shard.path)
    rows = bytes_before = 0
    began = time.perf_counter()
    with reading(shard.path, form, storage, shard.bytes) as file:
        if form == "parquet":
            windows = _read_parquet(shard, file, columns, kept, window_rows)
        else:
            read = read_jsonl if form == "jsonl" else read_csv
            limits = (window_rows, BYTES_PER_WINDOW)
            windows = read(shard.path, file, compression, columns, kept, limits)
        for window, at in windows:
            bytes_now = shard.bytes if at is None else at
            spent = time.perf_counter() - began
            yield _in_source_order(window, number, kept, bytes_now - bytes_before, spent)
            rows, bytes_before = rows + len(window), bytes_now
            began = time.perf_counter()
    if not rows:
        raise empty_shard(shard.path)


def bad_shard_row(
    number: int, rows_before: int, error: BadShard, kept: Sequence[pa.Field]
) -> pa.Table:
    """A shard that can't be read, or not to its end, as one row of the schema `rows.source`.

    Its row is -1, which no real row has; the reason says what is wrong.
    """
    read = f"; its first {rows_before:,} rows were read" if rows_before else ""
    window = pa.table(
        {
            "row": pa.array([-1], pa.int64()),
            "doc_id": pa.array([None], pa.string()),
            "text": pa.array([None], pa.string()),
            **{field.name: pa.nulls(1, field.type) for field in kept},
            "reason": pa.array([f"the shard is bad: {error}{read}"], pa.string()),
        }
    )
    return _in_source_order(window, number, kept, 0.0, 0.0)


def arrow_rows(
    where: str, block: pa.Table, columns: CorpusColumns, kept: Sequence[pa.Field]
) -> pa.Table:
    """Rows that are in memory already, checked as a parquet shard's are; they have no place (-1).

    Raises:
        BadShard: a column is missing, or the text isn't text.
    """
    check_columns(where, columns.all, block.column_names)
    check_types(where, block.schema, columns)
    if not len(block):
        return source(kept).empty_table()
    window = pa.concat_tables(_parquet_window(b, 0, columns, kept) for b in block.to_batches())
    window = window.set_column(0, "row", pa.repeat(pa.scalar(-1, pa.int64()), len(window)))
    return _in_source_order(window, -1, kept, 0.0, 0.0)


def _in_source_order(
    window: pa.Table, number: int, kept: Sequence[pa.Field], size: float, seconds: float
) -> pa.Table:
    """Add the shard's number and each row's share of bytes and seconds."""
    count = max(1, len(window))
    for name, value, kind in (
        ("shard", number, pa.int32()),
        ("shard_bytes", size / count, pa.float32()),
        ("read_seconds", seconds / count, pa.float32()),
    ):
        window = window.append_column(name, pa.repeat(pa.scalar(value, kind), len(window)))
    return check(window, source(kept), where=f"shard {number}")


def _read_parquet(
    shard: Shard,
    file: IO[bytes],
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    window_rows: int,
) -> Iterator[tuple[pa.Table, int | None]]:
    parquet = pq.ParquetFile(file, buffer_size=1 << 20)
    schema = parquet.schema_arrow
    check_columns(shard.path, columns.all, schema.names)
    check_types(shard.path, schema, columns)
    total = max(1, parquet.metadata.num_rows)
    widest = max(
        (
            g.total_byte_size / max(1, g.num_rows)
            for g in map(parquet.metadata.row_group, range(parquet.num_row_groups))
        ),
        default=1.0,
    )
    rows_at_once = int(max(1, min(window_rows, BYTES_PER_WINDOW // max(1.0, widest))))
    row = 0
    for batch in parquet.iter_batches(rows_at_once, columns=columns.all):
        if len(batch):
            yield (
                _parquet_window(batch, row, columns, kept),
                int(shard.bytes * (row + len(batch)) / total),
            )
            row += len(batch)
    if row != parquet.metadata.num_rows:
        raise BadShard(
            f"{shard.path}: {row:,} rows where the footer counts {parquet.metadata.num_rows:,};"
            " expected a whole file of that format, so export it again or take it out of the corpus"
        )


def check_types(path: str, schema: pa.Schema, columns: CorpusColumns) -> None:
    """Check that the text is text, and the id text or an integer.

    Raises:
        BadShard: names the file, the column, its type and what was expected.
    """
    text, doc_id = (_plain(schema.field(name).type) for name in (columns.text, columns.doc_id))
    if not is_text(text) and not pa.types.is_null(text):
        raise BadShard(
            f"{path}: column {columns.text} is {text}, expected text (string);"
            " convert it, or name another with --text_column"
        )
    if not is_text(doc_id) and not pa.types.is_integer(doc_id) and not pa.types.is_null(doc_id):
        raise BadShard(
            f"{path}: column {columns.doc_id} is {doc_id}, expected text or integers as ids;"
            " convert it, or name another with --doc_id_column"
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _parquet_window(
    batch: pa.RecordBatch, row: int, columns: CorpusColumns, kept: Sequence[pa.Field]
) -> pa.Table:
    reasons: list[str | None] = [None] * len(batch)
    ids = valid_utf8(_decoded(batch.column(columns.doc_id)), "id", reasons)
    texts = valid_utf8(_decoded(batch.column(columns.text)), "text", reasons)
    cells = {
        field.name: as_type(_decoded(batch.column(field.name)), field, reasons) for field in kept
    }
    return pa.table(
        {
            "row": pa.array(range(row, row + len(batch)), pa.int64()),
            "doc_id": ids,
            "text": texts,
            **cells,
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _decoded(column: pa.Array) -> pa.Array:
    """The column without dictionary encoding; strings and integers otherwise as they are."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def parquet_schema(path: str, storage: StorageSettings = StorageSettings()) -> pa.Schema:
    """A parquet shard's columns, from its footer.

    Raises:
        CorpusError: it can't be read.
    """
    with reading(path, "parquet", storage) as file:
        return pq.ParquetFile(file).schema_arrow
