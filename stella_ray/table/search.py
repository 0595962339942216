"""Searching the published version: by vector, by words, or by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from lance.query import MatchQuery

from stella_ray.errors import SettingsError, TableError
from stella_ray.storage import StorageSettings
from stella_ray.table import vector_index
from stella_ray.table.fragments import ROWS_PER_TAKE, lance_errors, reason
from stella_ray.table.index import TEXT_INDEX
from stella_ray.table.publish import LIVE
from stella_ray.table.vectors import VectorTable

RRF = 60
"""The constant of reciprocal rank fusion: a document's score is the sum of 1 / (60 + its place)
over the rankings (Cormack, Clarke and Büttcher, SIGIR 2009)."""

FUSED = 100
"""Documents of each ranking that a fusion sees at least: one that is far down in both may be first
in the end."""

MAX_TIES = 1_000
"""Rows that are looked at only to put those of equal scores in order."""

_PLUMBING = ("vector", "row_key", "run_id", "n_tokens", "truncated")


class _Row(NamedTuple):
    """A row in a ranking; sorted, the best is first, and equal scores are in the order of ids."""

    minus_score: float
    doc_id: str
    chunk: int
    address: int


def search(
    table: VectorTable,
    *,
    vector: np.ndarray | None = None,
    text: str | None = None,
    limit: int = 10,
    filter: str | None = None,
) -> list[dict[str, Any]]:
    """The best documents for a query vector, for words, or for both, best first.

    Of a document that is cut into chunks, the best chunk stands for all.

    Args:
        table: an open version, usually the one under `live`.
        vector: the query's unit vector, float32 [dim].
        text: plain words of two characters or more, any of which a document may hold.
        limit: documents at most.
        filter: SQL over the table's columns, applied before the search.

    Returns:
        For each document its doc_id, kept columns, text if stored, and `score`: the cosine, BM25,
        or, for both, that of reciprocal rank fusion.

    Raises:
        SettingsError: a filter that the table can't answer.
        TableError: a vector of another size, or words where no text is indexed.
    """
    if vector is None and text is None:
        raise ValueError("search() needs a vector, a text or both")
    both = vector is not None and text is not None
    seen = max(FUSED, 2 * limit) if both else limit
    rankings = []
    if vector is not None:
        rankings.append(_ranking(table, _by_vector(table, vector), seen, filter))
    if text is not None:
        rankings.append(_ranking(table, _by_text(table, text), seen, filter))
    best = fused(rankings) if both else rankings[0]
    return _hits(table, best[:limit])


def fused(rankings: Sequence[Sequence[_Row]]) -> list[_Row]:
    """Fuse rankings by reciprocal rank; the row of a document is that of its best place."""
    places: dict[str, list[tuple[int, _Row]]] = {}
    for ranking in rankings:
        for place, row in enumerate(ranking, 1):
            places.setdefault(row.doc_id, []).append((place, row))
    rows = []
    for found in places.values():
        score = sum(1 / (RRF + place) for place, _ in found)
        best = min(found, key=lambda one: one[0])[1]  # the first ranking's, where both agree
        rows.append(best._replace(minus_score=-score))
    return sorted(rows)


def _by_vector(table: VectorTable, vector: np.ndarray) -> Callable[[int], dict[str, Any]]:
    dim = table.dataset.schema.field("vector").type.list_size
    if vector.shape != (dim,):
        raise TableError(
            f"{table.uri} holds vectors of {dim} numbers, the query's has the shape {vector.shape}"
        )
    rows = table.dataset.count_rows()
    return lambda count: {"nearest": vector_index.nearest(vector, count, rows)}


def _by_text(table: VectorTable, text: str) -> Callable[[int], dict[str, Any]]:
    if "text" not in table.dataset.schema.names:
        raise TableError(
            f"{table.uri} stores no text, so it can't be searched for words; search by vector, or"
            " embed into a new table with --store_text true"
        )
    with lance_errors(table.uri, "reading the indexes", table.storage):
        indexed = TEXT_INDEX in {index.name for index in table.dataset.describe_indices()}
    # Without the index Lance would search all the same, by a tokenizer that knows no Chinese.
    if not indexed and table.dataset.count_rows():
        raise TableError(
            f"{table.uri} has no full-text index, so it can't be searched for words; search by"
            " vector, or run jobs/embed.py with --index.text true"
        )
    # Lone surrogates (bytes of a command line that are no UTF-8) are in no text.
    words = " ".join(text.encode(errors="ignore").decode().split())
    return lambda count: {"full_text_query": MatchQuery(words, "text"), "limit": count}


def _ranking(
    table: VectorTable, ask: Callable[[int], dict[str, Any]], limit: int, filter: str | None
) -> list[_Row]:
    """The `limit` best documents, fewer where the table is exhausted; each by its best row."""
    rows = max(1, table.dataset.count_rows())
    # One more than is wanted shows whether the last place is shared.
    count = 4 * limit if table.chunked else limit + 1
    while True:
        count = min(count, rows)
        found = sorted(_ask(table, ask(count), filter))
        best: dict[str, _Row] = {}
        for row in found:
            best.setdefault(row.doc_id, row)
        ranking = list(best.values())
        exhausted = len(found) < count or count == rows
        if exhausted or len(ranking) >= limit:
            tied = not exhausted and found[-1].minus_score == ranking[limit - 1].minus_score
            if not tied or count > limit + MAX_TIES:
                return ranking[:limit]
        count *= 4


def _ask(table: VectorTable, how: dict[str, Any], filter: str | None) -> list[_Row]:
    names = table.dataset.schema.names
    measure = "_distance" if "nearest" in how else "_score"
    columns = ["doc_id", *(["chunk"] if table.chunked else []), measure]
    try:
        found = table.dataset.scanner(
            columns=columns, filter=filter, prefilter=True, with_row_address=True, **how
        ).to_table()
    except (ValueError, OSError, RuntimeError, pa.ArrowException) as error:
        if filter is None:
            raise TableError(f"{table.uri}: the search failed ({reason(error)})") from None
        why = reason(error).split(" Valid fields are")[0]
        shown = [name for name in names if name not in _PLUMBING]
        raise SettingsError(
            f"--filter {filter!r} can't be answered ({why}); expected SQL over the columns"
            f" {shown}, as in \"title = '…'\""
        ) from None
    values = found[measure].to_numpy()
    minus_scores = values.astype(np.float64) - 1 if measure == "_distance" else -values
    chunks = found["chunk"].to_pylist() if table.chunked else [0] * len(found)
    return list(
        map(
            _Row,
            minus_scores.tolist(),
            found["doc_id"].to_pylist(),
            chunks,
            found["_rowaddr"].to_pylist(),
        )
    )


def _hits(table: VectorTable, rows: Sequence[_Row]) -> list[dict[str, Any]]:
    columns = [name for name in table.dataset.schema.names if name not in _PLUMBING]
    hits: list[dict[str, Any]] = []
    with lance_errors(table.uri, "reading the hits", table.storage):
        for start in range(0, len(rows), ROWS_PER_TAKE):
            part = [row.address for row in rows[start : start + ROWS_PER_TAKE]]
            hits += table.dataset._take_rows(part, columns=columns).to_pylist()
    for hit, row in zip(hits, rows, strict=True):
        hit["score"] = -row.minus_score
    return hits


def open_live(uri: str, storage: StorageSettings = StorageSettings()) -> VectorTable:
    """Open the published version.

    Raises:
        TableError: no table, or nothing was published yet.
    """
    table = VectorTable.open(uri, storage=storage)
    if LIVE not in table.tagged():
        raise TableError(f"{uri}: nothing is published yet; finish a run of jobs/embed.py first")
    return VectorTable.open(uri, LIVE, storage)
