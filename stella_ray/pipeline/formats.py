"""The formats that a shard may have. A new one is an entry here (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from stella_ray.errors import CorpusError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.columnar import parquet_types, read_parquet
from stella_ray.pipeline.lines import csv_types, jsonl_types, read_csv, read_jsonl
from stella_ray.pipeline.reading import OpenShard


class Windows(Protocol):
    """How a format's rows are read."""

    def __call__(
        self,
        shard: OpenShard,
        columns: CorpusColumns,
        kept: Sequence[pa.Field],
        limits: tuple[int, int],
    ) -> Iterator[tuple[pa.Table, int]]:
        """Yield windows in constant memory, and the shard's bytes read so far behind each.

        What is wrong with a row becomes its reason; Arrow's, csv's and the system's errors of
        reading may rise as they are, and make the shard bad.

        Args:
            shard: open at its start.
            columns: which columns to read.
            kept: the kept columns as the table has them.
            limits: rows and bytes of text at which a window ends.

        Returns:
            Tables of row (int64, its number in the shard), doc_id and text (string, null with a
            reason where they can't be read), the kept columns, and reason (string).

        Raises:
            BadShard: the shard lacks a column, or its text isn't text.
        """


class Types(Protocol):
    """How a format says what its columns are."""

    def __call__(self, shard: OpenShard, columns: CorpusColumns) -> dict[str, pa.DataType]:
        """The Arrow type of each kept column.

        Raises:
            BadShard: the shard lacks a column.
        """


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of shards."""

    ends: tuple[str, ...]
    """How its files' names end."""
    windows: Windows
    types: Types
    packable: bool
    """Whether its files may be compressed as a whole, with one more ending."""


FORMATS = {
    "parquet": Format(
        ends=(".parquet",), windows=read_parquet, types=parquet_types, packable=False
    ),
    "jsonl": Format(
        ends=(".jsonl", ".ndjson"), windows=read_jsonl, types=jsonl_types, packable=True
    ),
    "csv": Format(ends=(".csv",), windows=read_csv, types=csv_types, packable=True),
}

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def shard_format(path: str) -> tuple[str, str | None] | None:
    """The format and compression by a file's name; None where it isn't one that is read here."""
    compression = next((c for end, c in COMPRESSIONS.items() if path.endswith(end)), None)
    stem = path.rpartition(".")[0] if compression else path
    form = next((name for name, form in FORMATS.items() if stem.endswith(form.ends)), None)
    if form is None or (compression and not FORMATS[form].packable):
        return None
    return form, compression


def format_of(path: str) -> tuple[str, str | None]:
    """The format and compression of a file that should have one.

    Raises:
        CorpusError: it hasn't.
    """
    if (found := shard_format(path)) is None:
        raise CorpusError(f"{path}: not a format that is read here; expected {readable_formats()}")
    return found


def readable_formats() -> str:
    """The formats and compressions, for people."""
    ends = ", ".join(end for form in FORMATS.values() for end in form.ends)
    whole = ", ".join(end for form in FORMATS.values() if not form.packable for end in form.ends)
    return f"{ends} (each but {whole} also with {' or '.join(COMPRESSIONS)})"
