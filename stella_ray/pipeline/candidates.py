"""The passages that may become negatives: in Ray's object store, in parts of bounded size.

The store spills to the nodes' disks what doesn't fit their memory, so that a corpus may be larger
than all of it; the driver holds references. Each part is scored, and read again, by one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from stella_ray.errors import CorpusError
from stella_ray.learn.mined import CANDIDATE, Pairs
from stella_ray.pipeline.cluster import Pool, keep_ray_data_quiet
from stella_ray.pipeline.corpus import ShardedCorpus
from stella_ray.pipeline.judge import sound_rows
from stella_ray.storage import StorageSettings
from stella_ray.table.fragments import rows_at

ROW_BITS = 40
"""Of a place: the row in its shard; the bits above are the shard's number."""

BYTES_PER_PART = 64 << 20
"""Text at which a part is full, however few rows that are."""


@dataclass(frozen=True)
class Candidates:
    """A corpus at rest.

    Attributes:
        parts: each one's blocks, references to tables of the schema CANDIDATE.
        rows: that can be used.
        passed_over: that can't: no text, no id, bad UTF-8.
    """

    parts: list[list[Any]]
    rows: int
    passed_over: int


def corpus_candidates(corpus: ShardedCorpus, pool: Pool, part_rows: int) -> Candidates:
    """Read a corpus into the object store.

    Raises:
        CorpusError: a shard that can't be read; or no row can be used.
    """
    rows = corpus.rows(pool).map_batches(
        candidate_block, batch_size=None, batch_format="pyarrow", num_cpus=pool.task_cpus
    )
    return _grouped(rows.to_arrow_refs(), part_rows, pool)


def pair_candidates(pairs: Pairs, pool: Pool, part_rows: int) -> Candidates:
    """The pairs' own distinct passages, likewise."""
    return _grouped([ray.put(block) for block in pairs.passages()], part_rows, pool)


def candidate_block(block: pa.Table) -> pa.Table:
    """A shard's rows as CANDIDATE; of those that can't be used only their number stays."""
    keep_ray_data_quiet()
    sound = sound_rows(block)
    shards, rows = (sound.column(name).to_numpy().astype(np.int64) for name in ("shard", "row"))
    places = pa.array((shards << ROW_BITS) | rows)
    found = pa.table([places, sound["doc_id"], sound["text"]], schema=CANDIDATE)
    lost = len(block) - len(sound)
    nothing = [pa.nulls(lost, field.type) for field in CANDIDATE]
    return pa.concat_tables([found, pa.table(nothing, schema=CANDIDATE)])


def _grouped(blocks: list[Any], part_rows: int, pool: Pool) -> Candidates:
    """Blocks together as long as they fit a part; one that is larger in pieces."""
    measure = ray.remote(_size).options(num_cpus=pool.task_cpus)
    sizes = ray.get([measure.remote(block) for block in blocks])
    parts: list[list[Any]] = []
    alone: list[list[Any]] = []
    rows = text = 0
    for block, (_, own, size) in zip(blocks, sizes, strict=True):
        pieces = max(-(-own // part_rows), -(-size // BYTES_PER_PART))
        if own and pieces > 1:
            cut = ray.remote(_cut).options(num_cpus=pool.task_cpus, num_returns=pieces)
            alone += [[piece] for piece in cut.remote(block, pieces)]
        elif own:
            if not parts or rows + own > part_rows or text + size > BYTES_PER_PART:
                parts.append([])
                rows = text = 0
            parts[-1].append(block)
            rows, text = rows + own, text + size
    there, sound = (sum(size[i] for size in sizes) for i in (0, 1))
    if not sound:
        raise CorpusError(f"none of the corpus's {there:,} rows has an id and a text; check it")
    return Candidates(parts + alone, sound, there - sound)


def _size(block: pa.Table) -> tuple[int, int, int]:
    """Rows, usable rows, bytes."""
    return len(block), len(block) - block.column("text").null_count, block.nbytes


def _cut(block: pa.Table, pieces: int) -> list[pa.Table]:
    """The usable rows of a block in so many pieces."""
    rows = usable([block])
    step = -(-len(rows) // pieces)
    return [rows.slice(i * step, step) for i in range(pieces)]


def usable(blocks: Iterable[pa.Table]) -> pa.Table:
    """A part's rows that can be used, CANDIDATE."""
    whole = pa.concat_tables(blocks)
    return whole.filter(whole.column("text").is_valid())


def texts_in_part(places: Sequence[np.ndarray], *blocks: pa.Table) -> list[pa.Table] | pa.Table:
    """The rows at each of these sets of places of a part, CANDIDATE; of one set, its table alone.

    As many results as a Ray task of so many returns gives.
    """
    rows = usable(blocks)
    there = rows.column("place").to_numpy()
    tables = [rows.filter(pa.array(np.isin(there, own))) for own in places]
    return tables if len(tables) > 1 else tables[0]


def texts_in_table(
    uri: str, version: int, storage: StorageSettings, addresses: np.ndarray
) -> pa.Table:
    """The rows at these addresses of a vector table, CANDIDATE; a place is an address."""
    own = addresses.astype(np.uint64)
    rows = rows_at(uri, version, own, ["doc_id", "text"], storage)
    return pa.table([pa.array(addresses), rows["doc_id"], rows["text"]], schema=CANDIDATE)
