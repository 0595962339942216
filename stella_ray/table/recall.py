"""How much of what an exact search finds the vector index finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stella_ray.table import vector_index
from stella_ray.table.fragments import lance_errors
from stella_ray.table.nearest import exact, matrix
from stella_ray.table.vectors import VectorTable

RECALL_ROWS = 2_000_000
"""Rows that recall is measured against; of larger tables so many, in fragments drawn by chance."""

NOISE = 0.1
"""Length of what is added to a row's vector to make a query: itself, it would find itself."""


def recall(table: VectorTable, queries: int = 100, k: int = 10, seed: int = 0) -> float | None:
    """The share of the `k` nearest rows that the vector index finds; None where there is no index.

    1. Draw fragments of RECALL_ROWS rows in all (all, in most tables), and queries from them: rows'
       vectors with some noise.
    2. Ask the index, as searches do.
    3. Read the drawn fragments once, for all queries together: time and memory don't grow with
       the table above RECALL_ROWS rows.
    4. Count which of the k nearest rows there the index found. Where not all fragments were drawn,
       only those count that are at least as near as its k-th hit, since it looked at other
       fragments too; an index that finds nearly nothing then seems a little better than it is.
    """
    with lance_errors(table.uri, "measuring recall", table.storage):
        dataset = table.dataset
        if not any("vector" in index.field_names for index in dataset.describe_indices()):
            return None
        dice = np.random.default_rng(seed)
        fragments = dice.permutation(np.array(dataset.get_fragments(), object))
        sizes = np.array([fragment.count_rows() for fragment in fragments])
        drawn = fragments[np.cumsum(sizes) - sizes < RECALL_ROWS].tolist()
        asked = _queries(drawn, queries, dice)
        k = min(k, dataset.count_rows())
        scanner = dataset.scanner(
            columns=["_distance"],
            nearest=vector_index.nearest(asked, k, dataset.count_rows()),
            with_row_address=True,
        )
        answers = scanner.to_table()
        near, rows = exact(table, asked, k, drawn)
    number = answers["query_index"].to_numpy()
    addresses, cosines = answers["_rowaddr"].to_numpy(), 1 - answers["_distance"].to_numpy()
    found = wanted = 0
    for query in range(len(asked)):
        own = number == query
        inside = near[query] >= (cosines[own].min(initial=1) - 1e-5 if own.sum() == k else -1)
        wanted += int(inside.sum())
        found += int(np.isin(rows[query][inside], addresses[own]).sum())
    return found / wanted if wanted else 1.0


def _queries(fragments: Sequence[Any], count: int, dice: np.random.Generator) -> np.ndarray:
    """Vectors of rows drawn from these fragments with some noise, length 1, float32 [n, dim]."""
    sizes = np.array([fragment.count_rows() for fragment in fragments])
    rows = np.sort(dice.choice(sizes.sum(), min(count, sizes.sum()), replace=False))
    ends = np.cumsum(sizes)
    parts = []
    for number in np.unique(np.searchsorted(ends, rows, "right")):
        start = ends[number] - sizes[number]
        inside = rows[(rows >= start) & (rows < ends[number])] - start
        parts.append(matrix(fragments[number].take(inside.tolist(), columns=["vector"])))
    vectors = np.concatenate(parts)
    noise = dice.standard_normal(vectors.shape).astype(np.float32)
    vectors += NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
