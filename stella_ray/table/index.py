"""What makes reading fast after the last commit: few large fragments, and the indexes.

    doc_id_idx   BTREE on doc_id
    text_idx     full text (BM25), where the table stores text
    vector_idx   IVF_HNSW_SQ or IVF_PQ, from `min_rows` rows on (vector_index.py)

Every step makes a version of its own and looks at what is there first, so that one that failed, or
whose answer was lost, is made up for by the next call. An index belongs to a version: a rebuild
with another encoder starts without any.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from stella_ray.errors import SettingsError, TableError
from stella_ray.table import vector_index
from stella_ray.table.fragments import lance_errors, tried
from stella_ray.table.vectors import VectorTable

ROWS_PER_FRAGMENT = 131_072
"""Compaction's aim, 400 MB at 768 float32: one night's small fragments drag at most this many old
rows along with them, whatever the size of the table."""

SMALL_FRAGMENTS = 8
"""So many fragments below half the aim make a compaction worth it."""

ROWS_PER_PASS = 16 * ROWS_PER_FRAGMENT
"""Rows that one commit of a compaction moves: each costs some 40 bytes of old and new address, for
which every index is rewritten once a commit. Lance leaves a task alone that is larger than this,
silently, so it must be several times the aim."""

INDEX_NAME = "doc_id_idx"
TEXT_INDEX = "text_idx"

FULL_TEXT: dict[str, Any] = {
    "base_tokenizer": "ngram",
    "min_ngram_length": 2,
    "max_ngram_length": 2,
    "stem": False,
    "remove_stop_words": False,
}
"""Pairs of characters: no dictionary, and every word is found inside longer ones. With single
characters too, a query of one would find something, and all others would take twenty times as long;
ICU's words are faster and a third as large, and find 3 of 100 documents less. Lance's own default
finds nothing in Chinese (benchmarks/indexes.py)."""

TEXT_MEMORY_MB = 1_024
"""What building the full-text index may hold; Lance's own default is 2 GiB for each CPU."""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """Which indexes the table gets."""

    vector: Literal["auto", "none", "ivf_pq", "ivf_hnsw_sq"] = "auto"
    """Kind of vector index; auto: ivf_hnsw_sq, from a million rows on ivf_pq, a tenth of its size.
    Another kind than the table's builds it anew."""
    min_rows: int = 50_000
    """Rows below which there is no vector index: looking at all of them takes milliseconds and
    misses none."""
    text: bool = True
    """A full-text index, where the table stores text; about twice the text's size."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if self.min_rows < 1:
            raise SettingsError(f"index.min_rows {self.min_rows} is too small; expected 1 or more")


def tidy(table: VectorTable, settings: IndexSettings = IndexSettings()) -> None:
    """Merge small fragments, then bring the indexes up to date; no row changes.

    Works on the newest version. Makes none where nothing is to be done.

    Raises:
        TableError: the store or the table failed; what was done stays, and a second call goes on.
    """
    # Else Lance reports an index with all its centroids, and warns that it does.
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
    for attempt in range(3):
        try:
            tried(table.uri, table.storage, lambda: _tidy(table, settings))
            break
        except TableError as error:
            # The run is the only writer: a commit that conflicts does so with itself, made once
            # already by a request whose answer was lost.
            if "conflict" not in str(error).lower() or attempt == 2:
                raise


def uncovered_rows(table: VectorTable) -> dict[str, int]:
    """For each index, the rows that it doesn't cover; all 0 after `tidy`."""
    with lance_errors(table.uri, "reading the indexes", table.storage):
        rows = {f.fragment_id: f.count_rows() for f in table.dataset.get_fragments()}
        return {
            index.name: sum(rows[number] for number in rows.keys() - _covered(index))
            for index in table.dataset.describe_indices()
        }


def _covered(index: Any) -> set[int]:
    return {number for segment in index.segments for number in segment.fragment_ids}


def _tidy(table: VectorTable, settings: IndexSettings) -> None:
    with lance_errors(table.uri, "opening the newest version", table.storage):
        table.dataset.checkout_latest()
    with lance_errors(table.uri, "compacting", table.storage):
        _compact(table)
    if table.dataset.count_rows() == 0:
        return
    with lance_errors(table.uri, "indexing doc_id", table.storage):
        _index_ids(table)
    with lance_errors(table.uri, "indexing text", table.storage):
        _index_text(table, wanted=settings.text and "text" in table.dataset.schema.names)
    with lance_errors(table.uri, "indexing vectors", table.storage):
        _index_vectors(table, settings)


def _compact(table: VectorTable) -> None:
    """Merge small fragments, ROWS_PER_PASS at a time.

    One thread: each holds a fragment that it writes, 400 MB at 768 float32, and Lance's default
    is one thread for each CPU.
    """
    small = [f for f in table.dataset.get_fragments() if f.count_rows() < ROWS_PER_FRAGMENT // 2]
    if len(small) < SMALL_FRAGMENTS:
        return
    removed = 1
    while removed:
        done = table.dataset.optimize.compact_files(
            target_rows_per_fragment=ROWS_PER_FRAGMENT,
            max_source_rows=ROWS_PER_PASS,
            num_threads=1,
            batch_size=1_024,
        )
        removed = done.fragments_removed


def _found(table: VectorTable, name: str) -> Any:
    """Lance's description of an index; None where there is none."""
    return next((i for i in table.dataset.describe_indices() if i.name == name), None)


def _index_ids(table: VectorTable) -> None:
    if _found(table, INDEX_NAME) is None:
        table.dataset.create_scalar_index("doc_id", "BTREE", name=INDEX_NAME)
    elif uncovered_rows(table)[INDEX_NAME]:
        table.dataset.optimize.optimize_indices(index_names=[INDEX_NAME])


def _index_text(table: VectorTable, *, wanted: bool) -> None:
    index = _found(table, TEXT_INDEX)
    if not wanted:
        if index is not None:
            table.dataset.drop_index(TEXT_INDEX)
        return
    uncovered = uncovered_rows(table).get(TEXT_INDEX, 0)
    # An update has Lance's own bounds alone, so what doubles the index is built with ours.
    if (
        index is None
        or not FULL_TEXT.items() <= index.details.items()
        or 2 * uncovered > table.dataset.count_rows()
    ):
        table.dataset.create_scalar_index(
            "text",
            "INVERTED",
            name=TEXT_INDEX,
            with_position=False,
            memory_limit=TEXT_MEMORY_MB,
            **FULL_TEXT,
        )
    elif uncovered:
        table.dataset.optimize.optimize_indices(index_names=[TEXT_INDEX])


def _index_vectors(table: VectorTable, settings: IndexSettings) -> None:
    index = _found(table, vector_index.NAME)
    rows = table.dataset.count_rows()
    if settings.vector == "none" or rows < settings.min_rows:
        if index is not None:
            table.dataset.drop_index(vector_index.NAME)
        return
    doubled = vector_index.doubled(table.dataset)
    kind: vector_index.VectorKind
    if settings.vector != "auto":
        kind = settings.vector
    elif index is not None and not doubled:  # near the limit, two kinds in turn would be a waste
        kind = index.index_type.lower()
    else:
        kind = "ivf_pq" if rows >= vector_index.LARGE else "ivf_hnsw_sq"
    if index is None or doubled or index.index_type.lower() != kind:
        table.dataset = vector_index.train(table.dataset, kind)
    elif uncovered_rows(table)[vector_index.NAME]:
        vector_index.extend(table.dataset, len(index.segments))
