"""The rows nearest to many vectors at once: by reading every vector, or by the index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stella_ray.table import vector_index
from stella_ray.table.fragments import ROWS_PER_TAKE, lance_errors
from stella_ray.table.vectors import VectorTable

READ_AHEAD = 64 << 20
"""Bytes that a scan of vectors has in flight; Lance's own 2 GiB would be the peak."""

QUERIES_AT_ONCE = 512
"""Of an exact search: their scores against `ROWS_PER_TAKE` rows take 16 MiB, whatever is asked."""

NO_ROW = -2.0
"""The cosine where there are fewer rows than were asked for."""


def exact(
    table: VectorTable, queries_QD: np.ndarray, k: int, fragments: Sequence[Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows nearest to each query, by reading all vectors once.

    Holds one batch of vectors, and its scores for some of the queries.

    Args:
        table: an open version.
        queries_QD: unit vectors, float32.
        k: hits for each.
        fragments: the table's to look at; all by default.

    Returns:
        Cosines, best first, float32 [queries, k], and row addresses, uint64 [queries, k]; `NO_ROW`
        and 0 where there are fewer rows than k.
    """
    best_QK = np.full((len(queries_QD), k), NO_ROW, np.float32)
    rows_QK = np.zeros((len(queries_QD), k), np.uint64)
    scan = table.dataset.scanner(
        columns=["vector"], fragments=fragments, with_row_address=True,
        batch_size=ROWS_PER_TAKE, batch_readahead=2, io_buffer_size=READ_AHEAD,
    )  # fmt: skip
    with lance_errors(table.uri, "reading the vectors", table.storage):
        for batch in scan.to_batches():
            vectors_ND = matrix(batch)
            vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
            addresses = batch.column("_rowaddr").to_numpy()
            for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
                some = slice(start, start + QUERIES_AT_ONCE)
                scores_QN = queries_QD[some] @ vectors_ND.T
                here_QN = np.broadcast_to(addresses, scores_QN.shape)
                scores = np.concatenate([best_QK[some], scores_QN], axis=1)
                rows = np.concatenate([rows_QK[some], here_QN], axis=1)
                top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
                best_QK[some] = np.take_along_axis(scores, top, axis=1)
                rows_QK[some] = np.take_along_axis(rows, top, axis=1)
    order = np.lexsort((rows_QK, -best_QK), axis=1)
    return np.take_along_axis(best_QK, order, 1), np.take_along_axis(rows_QK, order, 1)


def by_index(table: VectorTable, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by the vector index, as searches ask it; exact where the table has none."""
    rows = table.dataset.count_rows()
    best_QK = np.full((len(queries_QD), k), NO_ROW, np.float32)
    rows_QK = np.zeros((len(queries_QD), k), np.uint64)
    if not rows:
        return best_QK, rows_QK
    with lance_errors(table.uri, "searching", table.storage):
        scanner = table.dataset.scanner(
            columns=["_distance"],
            nearest=vector_index.nearest(queries_QD, min(k, rows), rows),
            with_row_address=True,
        )
        found = scanner.to_table()
    query = found["query_index"].to_numpy()
    cosines, addresses = 1 - found["_distance"].to_numpy(), found["_rowaddr"].to_numpy()
    order = np.lexsort((addresses, -cosines, query))
    query = query[order]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    best_QK[query, place] = cosines[order]
    rows_QK[query, place] = addresses[order]
    return best_QK, rows_QK


def matrix(block: pa.Table | pa.RecordBatch) -> np.ndarray:
    """The column `vector`, float32 [rows, dim], a copy."""
    column = block.column("vector")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    numbers: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers.reshape(len(block), -1)


def fragment_groups(table: VectorTable, rows: int) -> list[list[int]]:
    """The fragments' numbers in groups of at most so many rows, a larger one by itself."""
    groups: list[list[int]] = []
    room = 0
    for fragment in table.dataset.get_fragments():
        count = fragment.count_rows()
        if not groups or count > room:
            groups.append([])
            room = rows
        groups[-1].append(fragment.fragment_id)
        room -= count
    return groups
