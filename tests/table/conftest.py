"""Tiny tables: rows of a title, a text and a vector of eight numbers, made from their ids."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stella_ray.rows import row_keys, table_schema
from stella_ray.table.fragments import write_rows
from stella_ray.table.vectors import VectorTable

DIM = 8
TITLE = [pa.field("title", pa.string())]
SCHEMA = table_schema(TITLE, True, DIM, pa.float32())
ENCODER: dict[str, Any] = {
    "name": "tiny", "weights": "aa11", "tokenizer": "bb22", "revision": None, "pooling": "mean",
    "prefix": "结果: ", "max_tokens": 512, "normalisation": "l2", "digest": "d1d1",
    "open": {"path": "/models/tiny"},
}  # fmt: skip
OTHER = {**ENCODER, "name": "other", "weights": "cc33", "prefix": "", "digest": "d2d2",
         "open": {"path": "/models/other"}}  # fmt: skip


def unit_vectors(ids: Sequence[str], dim: int = DIM) -> np.ndarray:
    """A vector for each id, of length 1 and always the same, float32 [ids, dim]."""
    seeds = np.array([zlib.crc32(doc_id.encode()) for doc_id in ids], np.float64)
    raw = np.sin(np.outer(seeds, 1 / np.arange(3, dim + 3)))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def rows(
    ids: Iterable[str],
    *,
    texts: Sequence[str] | None = None,
    titles: Sequence[str | None] | None = None,
    vectors: np.ndarray | None = None,
    schema: pa.Schema = SCHEMA,
) -> pa.Table:
    """Rows of the table's schema with real keys; text and title follow from the id."""
    ids = list(ids)
    vector = schema.field("vector").type
    numbers = unit_vectors(ids, vector.list_size) if vectors is None else vectors
    flat = pa.array(numbers.reshape(-1)).cast(vector.value_type)
    columns: dict[str, Any] = {
        "doc_id": ids,
        "title": titles or [f"title of {doc_id[:9]}" for doc_id in ids],
        "text": texts or [f"text of {doc_id[:9]}" for doc_id in ids],
        "vector": pa.FixedSizeListArray.from_arrays(flat, vector.list_size),
        "n_tokens": [7] * len(ids),
        "truncated": [False] * len(ids),
        "run_id": ["run"] * len(ids),
    }
    source = pa.table({name: columns[name] for name in ("doc_id", "title", "text")})
    columns["row_key"] = row_keys(source, ["title"], ENCODER["digest"])
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def numbered(count: int, first: int = 0) -> list[str]:
    return [f"d{i}" for i in range(first, first + count)]


def add(table: VectorTable, ids: Iterable[str], **more: Any) -> VectorTable:
    """Write rows and commit them in a version of their own."""
    return table.commit(write_rows(rows(ids, **more), table.uri))


def ids_in(table: VectorTable) -> list[str]:
    return sorted(table.dataset.to_table(columns=["doc_id"])["doc_id"].to_pylist())


def addresses_of(table: VectorTable, ids: Iterable[str]) -> np.ndarray:
    """Where the rows of these ids lie now, in their order."""
    found = table.dataset.scanner(columns=["doc_id"], with_row_address=True).to_table()
    at = dict(zip(found["doc_id"].to_pylist(), found["_rowaddr"].to_pylist(), strict=True))
    return np.array([at[doc_id] for doc_id in ids], np.uint64)


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


@pytest.fixture
def docs(tmp_path: Path) -> VectorTable:
    """An empty table named docs."""
    return VectorTable.create(str(tmp_path / "db" / "docs.lance"), SCHEMA, ENCODER)
