"""Vectors into fragments, on CPU tasks; what the driver sees of them is a receipt.

Lance is imported where something is written: on a night without changes no task needs it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.pipeline.judge import resolved
from stella_ray.pipeline.prepare import ranges
from stella_ray.receipts import LENGTHS, RECEIPT
from stella_ray.rows import (
    FRESH,
    KEY_BYTES,
    REFRESHED,
    REJECTED,
    SUMMARY,
    chunk_keys,
    key_array,
    key_column,
)
from stella_ray.storage import StorageSettings

COSTS = ("shard_bytes", "read_seconds")
SUMS = ("padded_tokens", "encode_seconds")
"""Columns of a prepared and of an embedded block whose sums are the receipt's."""

UNIT = 1e-3
"""How far a vector's norm may be from 1."""


def write(
    block: pa.Table,
    uri: str,
    schema: pa.Schema,
    run_id: str,
    known: Any,
    storage: StorageSettings = StorageSettings(),
) -> pa.Table:
    """Write the fresh and refreshed rows of an embedded block as fragments; returns the receipt.

    A vector that isn't finite and of length 1 is never written: its row is rejected.
    """
    keep_ray_data_quiet()
    met, began = time.time(), time.perf_counter()
    block, fates, told = observed(block)
    fresh = block.take(np.flatnonzero(fates == FRESH))
    dim = schema.field("vector").type.list_size
    vectors = _flat(fresh).to_numpy().reshape(-1, dim)
    with np.errstate(invalid="ignore", over="ignore"):
        sound = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1) <= UNIT
    failed = block.take(np.flatnonzero((fates == REJECTED) & _tokenised(block)))
    unsound = fresh.take(np.flatnonzero(~sound))
    rejects = _rejects(failed, None) + _rejects(unsound, "the encoder gave no unit vector")
    broken = np.concatenate([key_array(failed), key_array(unsound)])
    fresh, vectors = fresh.take(np.flatnonzero(sound)), vectors[sound]
    parts, refreshed_keys = [], np.empty(0, f"S{KEY_BYTES}")
    if len(fresh):
        flat = pa.array(vectors.reshape(-1)).cast(schema.field("vector").type.value_type)
        vector = pa.FixedSizeListArray.from_arrays(flat, dim)
        parts.append(_table_rows(fresh, {"vector": vector}, schema, run_id))
    if (fates == REFRESHED).any():
        part = _refreshed(block, fates == REFRESHED, uri, schema, run_id, known, storage)
        parts.append(part)
        refreshed_keys = key_array(part)
    encoded = pc.greater(fresh.column("padded_tokens"), pa.scalar(0, pa.int32()))
    windows = block.column("window").drop_null().to_pylist()
    receipt = {
        **told,
        "fragments": _fragments(parts, uri, storage),
        "truncated": pc.sum(fresh.column("truncated")).as_py() or 0,
        "tokens": pc.sum(fresh.column("n_tokens").filter(encoded)).as_py() or 0,
        **{name: pc.sum(block.column(name)).as_py() or 0 for name in SUMS},
        "write_seconds": time.perf_counter() - began,
        "windows": windows,
        # Two nodes' clocks may differ by more than a short wait.
        "write_queued": max(0.0, met - max(w["ended"] for w in windows)) if windows else None,
        "written_at": time.time(),
        "lengths": length_counts(fresh.column("n_tokens").to_numpy()),
        "fresh_keys": key_array(fresh).tobytes(),
        "refreshed_keys": refreshed_keys.tobytes(),
        "broken": broken.tobytes(),
        # Rows that were refused before the encoder come first: they have no chunks.
        "rejects": told["rejects"] + rejects,
        "samples": _samples(fresh),
    }
    return pa.Table.from_pylist([receipt], schema=RECEIPT)


def observed(block: pa.Table) -> tuple[pa.Table, np.ndarray, dict[str, Any]]:
    """What a receipt says of a block whatever becomes of its fresh rows.

    Args:
        block: of the schema `rows.prepared` or `rows.embedded`.

    Returns:
        Its rows without those that sum up others; their fates; and columns of `RECEIPT`.
    """
    fates = np.asarray(block.column("fate").to_pylist(), object)
    stayed = block.column("stayed").filter(pa.array(fates == SUMMARY)).to_pylist()
    costs = {name: pc.sum(block.column(name)).as_py() or 0 for name in COSTS}
    block, fates = block.take(np.flatnonzero(fates != SUMMARY)), fates[fates != SUMMARY]
    bad = pc.and_(pc.less(block.column("row"), 0), pc.greater_equal(block.column("shard"), 0))
    bad_shard = bad.to_numpy()
    refused = block.take(np.flatnonzero((fates == REJECTED) & ~bad_shard & ~_tokenised(block)))
    told = {
        **costs,
        "rows_read": int(((block.column("chunk").to_numpy() == 0) & ~bad_shard).sum())
        + sum(one["rows"] for one in stayed),
        "repeated_rows": sum(one["repeated"] for one in stayed),
        "seen": b"".join(one["seen"] for one in stayed),
        "rejects": _rejects(refused, None),
        "bad_shards": _rejects(block.take(np.flatnonzero(bad_shard)), None),
    }
    return block, fates, told


def length_counts(tokens: np.ndarray) -> list[int]:
    """How many of these numbers of tokens fall in each bin of `LENGTHS`, and above."""
    counts: list[int] = np.bincount(
        np.searchsorted(LENGTHS, tokens), minlength=len(LENGTHS) + 1
    ).tolist()
    return counts


def _tokenised(block: pa.Table) -> np.ndarray:
    """Which rows came as far as the encoder, bool [rows]."""
    return np.asarray(block.column("chunks").to_numpy() > 0)


def _fragments(parts: list[pa.Table], uri: str, storage: StorageSettings) -> list[str]:
    """Write these rows; what the driver needs to commit them, JSON."""
    if not parts:
        return []
    from stella_ray.table.fragments import write_rows

    return write_rows(pa.concat_tables(parts).combine_chunks(), uri, storage)


def _refreshed(
    block: pa.Table,
    which: np.ndarray,
    uri: str,
    schema: pa.Schema,
    run_id: str,
    known: Any,
    storage: StorageSettings,
) -> pa.Table:
    """Rows whose kept columns alone changed: what the encoder made is read from the table."""
    documents = block.take(np.flatnonzero(which))
    at, counts = (documents.column(name).to_numpy() for name in ("known_at", "known_rows"))
    from stella_ray.table.fragments import rows_at

    there = resolved(known)
    own = ("text", "vector", "n_tokens", "truncated", "chunk", "chunks", "chunk_start", "chunk_end")
    names = [name for name in own if name in schema.names]
    old = rows_at(uri, there.version, there.addresses[ranges(at, counts)], names, storage)
    rows = documents.take(pa.array(np.repeat(np.arange(len(documents)), counts)))
    new = {name: old.column(name).combine_chunks() for name in names}
    if "chunk" in new:
        new["row_key"] = key_column(chunk_keys(key_array(rows), new["chunk"].to_numpy()))
    return _table_rows(rows, new, schema, run_id)


def _samples(fresh: pa.Table) -> list[dict[str, Any]]:
    """The rows that were encoded a second time."""
    taken = fresh.filter(pc.greater(pc.list_value_length(fresh.column("reference")), 0))
    return [
        {"row_key": row["row_key"], "vector": row["reference"]}
        for row in taken.select(["row_key", "reference"]).to_pylist()
    ]


def _flat(rows: pa.Table) -> pa.Array:
    vectors: Any = rows.column("vector").combine_chunks()
    flat: pa.Array = vectors.flatten()
    return flat


def _rejects(rows: pa.Table, reason: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows.select(["shard", "row", "doc_id", "reason"]).to_pylist()
    return [{**row, "reason": reason or row["reason"]} for row in found]


def _table_rows(
    rows: pa.Table, new: dict[str, pa.Array], schema: pa.Schema, run_id: str
) -> pa.Table:
    """Rows of the table's schema: `new` columns, the run's id, and the rest from `rows`."""
    columns = {**new, "run_id": pa.repeat(pa.scalar(run_id, pa.string()), len(rows))}
    return pa.table(
        {name: columns[name] if name in columns else rows.column(name) for name in schema.names},
        schema=schema,
    )
