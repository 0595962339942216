"""Searching the published version."""

from __future__ import annotations

from typing import Any

import numpy as np

from stella_ray.errors import SettingsError, TableError
from stella_ray.table.fragments import reason
from stella_ray.table.publish import LIVE
from stella_ray.table.vectors import VectorTable

_PLUMBING = ("vector", "row_key", "run_id", "n_tokens", "truncated")


def search(
    table: VectorTable, vector: np.ndarray, limit: int = 10, filter: str | None = None
) -> list[dict[str, Any]]:
    """The rows nearest to a query vector, best first.

    Args:
        table: an open version, usually the one under `live`.
        vector: the query's unit vector, float32 [dim].
        limit: rows at most.
        filter: SQL over the table's columns, applied before the search.

    Returns:
        For each row its doc_id, kept columns, text if stored, and `score`, the cosine.

    Raises:
        SettingsError: a filter that the table can't answer.
        TableError: a vector of another size.
    """
    dim = table.dataset.schema.field("vector").type.list_size
    if vector.shape != (dim,):
        raise TableError(
            f"{table.uri} holds vectors of {dim} numbers, the query's has the shape {vector.shape}"
        )
    columns = [name for name in table.dataset.schema.names if name not in _PLUMBING]
    nearest = {"column": "vector", "q": vector, "k": limit, "metric": "cosine"}
    try:
        found = table.dataset.to_table(
            columns=[*columns, "_distance"], nearest=nearest, filter=filter, prefilter=True
        )
    except (ValueError, OSError, RuntimeError) as error:
        if filter is None:
            raise TableError(f"{table.uri}: the search failed ({reason(error)})") from None
        why = reason(error).split(" Valid fields are")[0]
        raise SettingsError(
            f"--filter {filter!r} can't be answered ({why}); expected SQL over the columns"
            f" {columns}, as in \"title = '…'\""
        ) from None
    rows: list[dict[str, Any]] = found.to_pylist()
    for row in rows:
        row["score"] = 1.0 - row.pop("_distance")
    return rows


def open_live(uri: str) -> VectorTable:
    """Open the published version.

    Raises:
        TableError: no table, or nothing was published yet.
    """
    table = VectorTable.open(uri)
    if LIVE not in table.tagged():
        raise TableError(f"{uri}: nothing is published yet; finish a run of jobs/embed.py first")
    return VectorTable.open(uri, LIVE)


def recall(table, queries=100, k=10, seed=0):  # STUB
    if not any("vector" in i.field_names for i in table.dataset.describe_indices()):
        return None
    v = np.stack([x.values.to_numpy() for x in table.dataset.sample(min(queries, table.dataset.count_rows()), ["vector"])["vector"]])
    hits = []
    for q in v:
        a, b = (
            set(table.dataset.to_table(columns=["doc_id"], nearest={"column": "vector", "q": q, "k": k, "metric": "cosine", "use_index": use, "nprobes": 1})["doc_id"].to_pylist())
            for use in (True, False)
        )
        hits.append(len(a & b) / len(b))
    return float(np.mean(hits))
