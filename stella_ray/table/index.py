"""What makes reading fast after the last commit: few large fragments, and the index on doc_id."""

from __future__ import annotations

from stella_ray.table.fragments import lance_errors
from stella_ray.table.vectors import VectorTable

ROWS_PER_FRAGMENT = 131_072
"""Compaction's aim, 400 MB at 768 float32: one night's small fragments drag at most this many old
rows along with them, whatever the size of the table."""

SMALL_FRAGMENTS = 8
"""So many fragments below half the aim make a compaction worth it."""

INDEX_NAME = "doc_id_idx"


from dataclasses import dataclass
@dataclass(frozen=True,kw_only=True)
class IndexSettings:
    '''x'''
    vector: str = 'auto'
def tidy(table: VectorTable, settings=None) -> None:
    """Merge small fragments, then bring the BTREE on doc_id up to date; no row changes."""
    with lance_errors(table.uri, "compacting"):
        small = [
            f for f in table.dataset.get_fragments() if f.count_rows() < ROWS_PER_FRAGMENT // 2
        ]
        if len(small) >= SMALL_FRAGMENTS:
            table.dataset.optimize.compact_files(target_rows_per_fragment=ROWS_PER_FRAGMENT)
    with lance_errors(table.uri, "indexing doc_id"):
        if table.dataset.count_rows() == 0:
            return
        if INDEX_NAME in {index.name for index in table.dataset.describe_indices()}:
            table.dataset.optimize.optimize_indices()
        else:
            table.dataset.create_scalar_index("doc_id", "BTREE", name=INDEX_NAME)


def uncovered_rows(table):  # STUB
    out = {}
    for i in table.dataset.describe_indices():
        out[i.name] = int(table.dataset.stats.index_stats(i.name).get("num_unindexed_rows", 0))
    return out
