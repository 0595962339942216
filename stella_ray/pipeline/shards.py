"""Reading one shard of any format: each row with its place, each fault with its reason.

Our own readers, because Ray's merge files, don't know a row's number and die of one bad line. What
is wrong with a whole shard raises `BadShard`; what is wrong with a row becomes its `reason`.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from stella_ray.errors import BadShard
from stella_ray.pipeline.cells import CorpusColumns, check_columns, empty_shard
from stella_ray.pipeline.columnar import check_types, window_of
from stella_ray.pipeline.formats import FORMATS, format_of
from stella_ray.pipeline.reading import OpenShard, reading
from stella_ray.rows import check, source
from stella_ray.storage import StorageSettings

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
    if not shard.bytes:
        raise empty_shard(shard.path)
    form, compression = format_of(shard.path)
    rows = bytes_before = 0
    began = time.perf_counter()
    with reading(shard.path, form, storage, shard.bytes) as file:
        opened = OpenShard(shard.path, file, shard.bytes, compression)
        limits = (window_rows, BYTES_PER_WINDOW)
        for window, bytes_now in FORMATS[form].windows(opened, columns, kept, limits):
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
    window = pa.concat_tables(window_of(b, 0, columns, kept) for b in block.to_batches())
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
