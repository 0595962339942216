"""Vectors into fragments, on CPU tasks; what the driver sees of them is a receipt."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.pipeline.prepare import resolved
from stella_ray.rows import FRESH, RECEIPT, REFRESHED, REJECTED, REPEATED, UNCHANGED, key_array
from stella_ray.table.fragments import rows_at, write_rows

UNIT = 1e-3
"""How far a vector's norm may be from 1."""


def write(block: pa.Table, uri: str, schema: pa.Schema, run_id: str, known: Any) -> pa.Table:
    """Write the fresh and refreshed rows of an embedded block as fragments; returns the receipt.

    A vector that isn't finite and of length 1 is never written: its row is rejected.
    """
    keep_ray_data_quiet()
    began = time.perf_counter()
    fates = np.asarray(block.column("fate").to_pylist(), object)
    fresh = block.take(np.flatnonzero(fates == FRESH))
    dim = schema.field("vector").type.list_size
    vectors = _flat(fresh).to_numpy().reshape(-1, dim)
    with np.errstate(invalid="ignore", over="ignore"):
        sound = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1) <= UNIT
    rejects = _rejects(block.take(np.flatnonzero(fates == REJECTED)), None)
    rejects += _rejects(fresh.take(np.flatnonzero(~sound)), "the encoder gave no unit vector")
    fresh, vectors = fresh.take(np.flatnonzero(sound)), vectors[sound]
    refreshed = block.take(np.flatnonzero(fates == REFRESHED))
    parts = []
    if len(fresh):
        flat = pa.array(vectors.reshape(-1)).cast(schema.field("vector").type.value_type)
        parts.append(
            _with_vectors(fresh, pa.FixedSizeListArray.from_arrays(flat, dim), schema, run_id)
        )
    if len(refreshed):
        keys = resolved(known)
        at = keys.addresses[refreshed.column("known_at").to_numpy()]
        old = rows_at(uri, keys.version, at, ["vector", "n_tokens", "truncated"])
        for name in ("n_tokens", "truncated"):
            refreshed = refreshed.set_column(
                refreshed.schema.get_field_index(name), name, old[name]
            )
        parts.append(_with_vectors(refreshed, old["vector"].combine_chunks(), schema, run_id))
    fragments = write_rows(pa.concat_tables(parts).combine_chunks(), uri) if parts else []
    total = {
        name: pc.sum(block.column(name)).as_py() or 0
        for name in ("padded_tokens", "shard_bytes", "read_seconds", "encode_seconds")
    }
    encoded = pc.greater(fresh.column("padded_tokens"), pa.scalar(0, pa.int32()))
    receipt = {
        "fragments": fragments,
        "rows_read": len(block),
        "truncated": pc.sum(fresh.column("truncated")).as_py() or 0,
        "tokens": pc.sum(fresh.column("n_tokens").filter(encoded)).as_py() or 0,
        **total,
        "write_seconds": time.perf_counter() - began,
        "repeated_rows": int((fates == REPEATED).sum()),
        "seen": block.column("known_at").to_numpy()[fates == UNCHANGED].tobytes(),
        "fresh_keys": key_array(fresh).tobytes(),
        "refreshed_keys": key_array(refreshed).tobytes(),
        "rejects": rejects,
    }
    return pa.Table.from_pylist([receipt], schema=RECEIPT)


def _flat(rows: pa.Table) -> pa.Array:
    vectors: Any = rows.column("vector").combine_chunks()
    flat: pa.Array = vectors.flatten()
    return flat


def _rejects(rows: pa.Table, reason: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows.select(["shard", "row", "doc_id", "reason"]).to_pylist()
    return [{**row, "reason": reason or row["reason"]} for row in found]


def _with_vectors(rows: pa.Table, vectors: pa.Array, schema: pa.Schema, run_id: str) -> pa.Table:
    columns = {"vector": vectors, "run_id": pa.repeat(pa.scalar(run_id, pa.string()), len(rows))}
    return pa.table(
        {name: columns[name] if name in columns else rows.column(name) for name in schema.names},
        schema=schema,
    )
