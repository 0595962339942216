"""The vector index: its kind and size by the table's, how it is trained, and how it is asked.

Cosine throughout. What bounds memory while training is the sample that k-means sees (TRAIN_BYTES);
all vectors are read in one stream, quantised, sorted by partition on disk, and written partition by
partition. Of HNSW's graph one partition at a time is in memory, ROWS_PER_GRAPH rows of one byte a
number and some 40 edges each.
"""

from __future__ import annotations

from typing import Any, Literal

import lance
import numpy as np

NAME = "vector_idx"

TRAINED_ROWS = "stella_ray.vector_idx.trained_rows"
"""Key of the table's config: the rows when the index was trained. There, because Lance's own
description of an index counts what was added later too, and because the config is part of the
version: a rollback brings the number that belongs to the index of then."""

LARGE = 1_000_000
"""Rows from which `auto` takes IVF_PQ: HNSW finds more at equal time, but a million rows take ten
times as long to build and ten times the space."""

ROWS_PER_PARTITION = 4_096
MAX_PARTITIONS = 4_096
ROWS_PER_GRAPH = 65_536
"""Rows in a partition of IVF_HNSW_SQ: half the building time of one graph for all."""

TRAIN_BYTES = 512 << 20
MIN_SAMPLES, MAX_SAMPLES = 40, 256
"""Vectors for each centroid: below 40 k-means gets poor, above 256 it only gets slow (faiss)."""

MAX_SEGMENTS = 8
"""Nights whose new rows wait in segments of their own until all are merged. Each is asked by each
query, and merging builds HNSW's graphs anew."""

MIN_PROBES = 32
"""Partitions that a query looks into at least; Lance goes on where a filter leaves too few hits."""
CANDIDATES = 128
"""Rows that HNSW keeps in view while it walks (ef)."""
REFINE = 10
"""Candidates for each hit whose whole vector is read: quantised distances alone find every second
neighbour only, and this makes scores exact."""

VectorKind = Literal["ivf_pq", "ivf_hnsw_sq"]


def train(dataset: lance.LanceDataset, kind: VectorKind) -> lance.LanceDataset:
    """Build the index from all rows, in place of the one that is there.

    The old one goes first and the number of rows is written before the new one is there: killed
    anywhere, this leaves a table without a vector index, never one that is taken for newer than it
    is. Readers of published versions keep theirs.
    """
    if NAME in {index.name for index in dataset.describe_indices()}:
        dataset.drop_index(NAME)
    rows = dataset.count_rows()
    if dataset.config().get(TRAINED_ROWS) != str(rows):
        dataset.update_config({TRAINED_ROWS: str(rows)})
    dim = dataset.schema.field("vector").type.list_size
    return dataset.create_index(
        "vector", kind.upper(), name=NAME, metric="cosine", **shape(kind, rows, dim)
    )


def shape(kind: VectorKind, rows: int, dim: int) -> dict[str, int]:
    """The index's numbers for a table of `rows` vectors of `dim`, as Lance calls them."""
    size = ROWS_PER_GRAPH if kind == "ivf_hnsw_sq" else ROWS_PER_PARTITION
    partitions = min(MAX_PARTITIONS, max(1, rows // size))
    own = {} if kind == "ivf_hnsw_sq" else {"num_sub_vectors": sub_vectors(dim)}
    affordable = TRAIN_BYTES // (partitions * dim * 4)
    sample_rate = min(MAX_SAMPLES, max(MIN_SAMPLES, affordable))
    return {"num_partitions": partitions, "sample_rate": sample_rate, **own}


def sub_vectors(dim: int) -> int:
    """The parts that PQ cuts a vector into, a byte each: eight numbers, or more if 8 is no fit.

    Short vectors get 32 parts all the same: four bytes for 32 numbers found 0.73 of the neighbours.
    """
    most = max(dim // 8, min(dim, 32))
    return next(parts for parts in range(most, 0, -1) if dim % parts == 0)


def doubled(dataset: lance.LanceDataset) -> bool:
    """Whether the table holds twice the rows that the index was trained on, or more."""
    return bool(dataset.count_rows() >= 2 * int(dataset.config().get(TRAINED_ROWS, 0)))


def extend(dataset: lance.LanceDataset, segments: int) -> None:
    """Index the rows that are not covered, as one more segment or, at the limit, as the only one.

    Lance's default makes a segment at every call, without limit.
    """
    merge = segments if segments >= MAX_SEGMENTS else 0
    dataset.optimize.optimize_indices(index_names=[NAME], num_indices_to_merge=merge)


def nearest(query: np.ndarray, count: int, rows: int) -> dict[str, Any]:
    """How Lance is asked for the `count` nearest rows; without an index the search is exact.

    Args:
        query: one vector, float32 [dim], or several, float32 [queries, dim].
        count: hits for each.
        rows: how many the table has.
    """
    return {
        "column": "vector",
        "q": query,
        "k": count,
        "metric": "cosine",
        # Where nearly all vectors would be read again, the index is only in the way.
        "use_index": count * REFINE < rows,
        "minimum_nprobes": MIN_PROBES,
        "refine_factor": REFINE,
        "ef": max(CANDIDATES, count * REFINE),
    }
