"""The queries of pairs as vectors, by the encoder's actors; and what a window of them finds."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from stella_ray.encode.models import EncoderSettings
from stella_ray.learn.bm25 import Statistics, best_in_part, numbers, score, statistics, vocabulary
from stella_ray.learn.bm25 import tokens as tokens_of
from stella_ray.learn.hits import HIT, NO_HIT, merged
from stella_ray.learn.mined import Pairs
from stella_ray.pipeline.candidates import Candidates, usable
from stella_ray.pipeline.cluster import Pool, keep_ray_data_quiet, map_blocks
from stella_ray.pipeline.encode import load
from stella_ray.pipeline.tasks import in_order, reduced, tasks_at_once
from stella_ray.storage import StorageSettings
from stella_ray.table.nearest import NO_ROW, by_index, exact, fragment_groups
from stella_ray.table.vectors import VectorTable

log = logging.getLogger(__name__)

QUERIES_PER_SEARCH = 256
"""Of one question to the vector index."""


class EncodePairs:
    """An actor that holds the encoder: pairs in, their query's vector and the cosine out.

    Args:
        settings: the encoder.
        digest: of its fingerprint on the driver.
        threads: of the CPU.
    """

    def __init__(self, settings: EncoderSettings, digest: str, threads: int) -> None:
        keep_ray_data_quiet()
        self.threads = threads
        self.encoder = load(settings, digest)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Encode one window: row, vector, positive_vector."""
        import torch

        torch.set_num_threads(self.threads)
        try:
            queries = self.encoder.embed(block.column("query").to_pylist(), prefix="query")
            passages = self.encoder.embed(block.column("passage").to_pylist(), prefix="passage")
        except torch.AcceleratorError as error:
            log.error("the device is lost, leaving the process: %s", error)
            os._exit(70)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), queries.shape[1])
        own = (queries * passages).sum(1)
        return pa.table({"row": block["row"], "vector": vectors, "positive_vector": own})


def encoded(pairs: Pairs, settings: EncoderSettings, digest: str, pool: Pool) -> Iterator[pa.Table]:
    """All pairs in their order: row, vector, positive_vector; encoded while the caller works."""
    starts = range(0, pairs.store.rows, pool.window_rows)
    names = ["row", "query", "passage"]
    blocks = [
        ray.put(pairs.take(start, start + pool.window_rows).select(names)) for start in starts
    ]
    dataset = ray.data.from_arrow_refs(blocks)
    dataset.context.execution_options.preserve_order = True
    with warnings.catch_warnings():
        # As in pipeline/embed.py: a bound on retries has no other way in yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        vectors = map_blocks(
            dataset,
            EncodePairs,
            fn_constructor_args=(settings, digest, pool.threads),
            compute=ray.data.ActorPoolStrategy(size=pool.encoders),
            num_cpus=pool.cpus_per_encoder,
            num_gpus=pool.gpus_per_encoder or None,
            max_task_retries=pool.window_retries,
        )
    yield from vectors.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def windows(
    pairs: Pairs, rows: int, vectors: Iterable[pa.Table] | None
) -> Iterator[tuple[pa.Table, np.ndarray | None, np.ndarray | None]]:
    """Windows of pairs, PAIR, with their vectors and their passages' cosines, where there are any.

    Args:
        pairs: all of them.
        rows: of a window.
        vectors: what `encoded` yields.
    """
    if vectors is None:
        for start in range(0, pairs.store.rows, rows):
            yield pairs.take(start, start + rows), None, None
        return
    waiting: list[pa.Table] = []
    for block in itertools.chain(vectors, [None]):
        if block is not None:
            waiting.append(block)
        while waiting and (block is None or sum(map(len, waiting)) >= rows):
            whole = pa.concat_tables(waiting)
            some, rest = whole.slice(0, rows), whole.slice(rows)
            waiting = [rest] if len(rest) else []
            start = some.column("row")[0].as_py()
            assert some.column("row")[-1].as_py() == start + len(some) - 1, "out of order; a bug"
            flat: Any = some.column("vector").combine_chunks().flatten()
            vector = flat.to_numpy().reshape(len(some), -1)
            own = some.column("positive_vector").to_numpy()
            yield pairs.take(start, start + len(some)), vector, own


def bm25_hits(
    rows: pa.Table, candidates: Candidates, depth: int, cpus: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates for each query by BM25.

    1. Number the tokens of all queries. 2. Count each part's documents, and add up. 3. Score each
    part by the sums, and merge.

    Args:
        rows: PAIR.
        candidates: the corpus.
        depth: how many for each query.
        cpus: of a task.

    Returns:
        HIT [queries, depth], and the score of each pair's own passage, float32 [queries].
    """
    asked = [tokens_of(text) for text in rows.column("query").to_pylist()]
    known = vocabulary(asked)
    queries = [[known[token] for token in one] for one in asked]
    own = numbers(rows.column("passage").to_pylist(), known)
    known_ref, queries_ref = ray.put(known), ray.put(queries)
    count = ray.remote(count_part).options(num_cpus=cpus)
    best = ray.remote(score_part).options(num_cpus=cpus)
    at_once = tasks_at_once(cpus)
    counted = (count.remote(known_ref, *blocks) for blocks in candidates.parts)
    whole = reduced(counted, Statistics.__add__, at_once, cpus)
    whole_ref = ray.put(whole)
    scored = (
        best.remote(known_ref, queries_ref, whole_ref, depth, part, *blocks)
        for part, blocks in enumerate(candidates.parts)
    )
    found = reduced(scored, merged, at_once, cpus)
    scores = [score(query, passage, whole) for query, passage in zip(queries, own, strict=True)]
    return found, np.asarray(scores, np.float32)


def count_part(known: dict[str, int], *blocks: pa.Table) -> Statistics:
    """The statistics of a part."""
    return statistics(numbers(usable(blocks).column("text").to_pylist(), known), len(known))


def score_part(
    known: dict[str, int],
    queries: Sequence[Sequence[int]],
    whole: Statistics,
    depth: int,
    part: int,
    *blocks: pa.Table,
) -> np.ndarray:
    """The best of a part for each query, HIT [queries, depth]."""
    rows = usable(blocks)
    documents = numbers(rows.column("text").to_pylist(), known)
    places = rows.column("place").to_numpy()
    return best_in_part(documents, places, part, whole, queries, depth)


def vector_hits(
    table: VectorTable, vectors: np.ndarray, depth: int, rows_of_task: int | None, cpus: float
) -> np.ndarray:
    """The nearest rows of a table for each query, HIT [queries, depth]; a place is an address.

    Args:
        table: an open version.
        vectors: the queries', float32 [queries, dim].
        depth: how many for each.
        rows_of_task: to search exactly, reading all vectors, so many in a task; None: by the index.
        cpus: of a task.
    """
    place = (table.uri, table.version, table.storage)
    if rows_of_task is not None:
        vectors_ref = ray.put(vectors)
        near = ray.remote(nearest_in_fragments).options(num_cpus=cpus)
        tasks = (
            near.remote(place, vectors_ref, depth, group)
            for group in fragment_groups(table, rows_of_task)
        )
        found: np.ndarray = reduced(tasks, merged, tasks_at_once(cpus), cpus)
        return found
    ask = ray.remote(nearest_by_index).options(num_cpus=cpus)
    starts = range(0, len(vectors), QUERIES_PER_SEARCH)
    asked = (ask.remote(place, vectors[i : i + QUERIES_PER_SEARCH], depth) for i in starts)
    return np.concatenate(list(in_order(asked, tasks_at_once(cpus))))


TablePlace = tuple[str, int, StorageSettings]


def nearest_in_fragments(
    place: TablePlace, vectors: np.ndarray, depth: int, fragments: Sequence[int]
) -> np.ndarray:
    """The nearest rows of these fragments, HIT [queries, depth]."""
    table = VectorTable.open(*place)
    own = [table.dataset.get_fragment(number) for number in fragments]
    return _as_hits(*exact(table, vectors, depth, own))


def nearest_by_index(place: TablePlace, vectors: np.ndarray, depth: int) -> np.ndarray:
    """The nearest rows that the index finds, HIT [queries, depth]."""
    return _as_hits(*by_index(VectorTable.open(*place), vectors, depth))


def _as_hits(cosines: np.ndarray, addresses: np.ndarray) -> np.ndarray:
    found = np.empty(cosines.shape, HIT)
    found["score"], found["part"], found["place"] = cosines, 0, addresses.astype(np.int64)
    found[cosines == NO_ROW] = NO_HIT
    return found
