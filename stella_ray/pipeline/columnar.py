"""Shards of Arrow columns: parquet, read in batches; their columns as the pipeline has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from stella_ray.errors import BadShard
from stella_ray.pipeline.cells import CorpusColumns, as_type, check_columns, valid_utf8
from stella_ray.pipeline.reading import OpenShard


def read_parquet(
    shard: OpenShard,
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    limits: tuple[int, int],
) -> Iterator[tuple[pa.Table, int]]:
    """Yield windows and the shard's bytes read so far; rows count from 0.

    Raises:
        BadShard: a column is missing, the text isn't text, or the footer counts other rows.
    """
    parquet = pq.ParquetFile(shard.file, buffer_size=1 << 20)
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
    rows_at_once = int(max(1, min(limits[0], limits[1] // max(1.0, widest))))
    row = 0
    for batch in parquet.iter_batches(rows_at_once, columns=columns.all):
        if len(batch):
            yield (
                window_of(batch, row, columns, kept),
                int(shard.bytes * (row + len(batch)) / total),
            )
            row += len(batch)
    if row != parquet.metadata.num_rows:
        raise BadShard(
            f"{shard.path}: {row:,} rows where the footer counts {parquet.metadata.num_rows:,};"
            " expected a whole file of that format, so export it again or take it out of the corpus"
        )


def parquet_types(shard: OpenShard, columns: CorpusColumns) -> dict[str, pa.DataType]:
    """The kept columns' Arrow types, from the footer.

    Raises:
        BadShard: a column is missing.
    """
    schema = pq.ParquetFile(shard.file).schema_arrow
    check_columns(shard.path, columns.all, schema.names)
    return {name: schema.field(name).type for name in columns.kept}


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


def window_of(
    batch: pa.RecordBatch, row: int, columns: CorpusColumns, kept: Sequence[pa.Field]
) -> pa.Table:
    """A batch as a window: row, doc_id, text, kept columns, reason.

    Args:
        batch: with the columns that are read, of any types that `check_types` lets pass.
        row: the shard's number of its first row.
        columns: what is read.
        kept: the kept columns as the table has them.
    """
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
