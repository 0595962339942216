"""Rows in motion on Ray Data: shards, prepared rows, vectors, fragments, receipts.

Each stage is a function from block to block; Ray is only its caller. The driver sees receipts,
never texts or vectors.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from ray.data import ActorPoolStrategy

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.tokens import Ragged
from stella_ray.errors import StellaError
from stella_ray.pipeline.cluster import Pool, keep_ray_data_quiet
from stella_ray.pipeline.corpus import Corpus
from stella_ray.pipeline.ledger import document_parts
from stella_ray.pipeline.prepare import Preparation, prepare, sound_rows, with_time
from stella_ray.rows import (
    FRESH,
    RECEIPT,
    REFRESHED,
    REJECTED,
    REPEATED,
    UNCHANGED,
    embedded,
    key_array,
    row_keys,
)
from stella_ray.table.vectors import KnownKeys, rows_at, write_rows

log = logging.getLogger(__name__)

UNIT = 1e-3
"""How far a vector's norm may be from 1."""


class EncodeBlocks:
    """An actor that holds the encoder: prepared blocks in, embedded ones out."""

    def __init__(self, settings: EncoderSettings, threads: int) -> None:
        keep_ray_data_quiet()
        torch.set_num_threads(threads)
        self.failure: StellaError | None = None
        try:
            self.encoder = Encoder(settings)
        except StellaError as error:
            # Ray tells of a constructor's exception as text only; __call__'s arrives as it is.
            self.failure = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one window."""
        if self.failure is not None:
            raise self.failure
        try:
            return encode(block, self.encoder)
        except torch.AcceleratorError as error:
            # After an illegal access or a failed assert on the device, nothing in this process can
            # succeed any more; Ray starts another.
            log.error("the device is lost, leaving the process: %s", error)
            os._exit(70)


def encode(block: pa.Table, encoder: Encoder) -> pa.Table:
    """Embed the fresh rows of one window, `rows.prepared` to `rows.embedded`; other rows pass."""
    fates = np.asarray(block.column("fate").to_pylist(), object)
    fresh = np.flatnonzero(fates == FRESH)
    rows = block.take(fresh)
    ids: Any = rows.column("token_ids").combine_chunks()
    tokens = Ragged(
        ids.flatten().to_numpy(), ids.offsets.to_numpy().astype(np.int64) - ids.offsets[0].as_py(),
        np.zeros(len(rows), bool),
    )  # fmt: skip
    done = encoder.embed_tokens(tokens)
    widths = np.zeros(len(block), np.int64)
    widths[fresh] = encoder.dim
    padded, seconds = np.zeros(len(block), np.int32), np.zeros(len(block), np.float32)
    padded[fresh], seconds[fresh] = done.padded_tokens, done.seconds
    offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]), pa.int32())
    vectors = pa.ListArray.from_arrays(offsets, pa.array(done.vectors.reshape(-1)))
    schema = embedded(block.schema)
    new = {
        "vector": vectors,
        "padded_tokens": pa.array(padded),
        "encode_seconds": pa.array(seconds),
    }
    return pa.table(
        {name: new[name] if name in new else block.column(name) for name in schema.names},
        schema=schema,
    )


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
        keys = _get(known)
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


def _get(known: Any) -> KnownKeys:
    """The known keys, zero-copy from the object store where they are a reference."""
    keys: KnownKeys = ray.get(known) if isinstance(known, ray.ObjectRef) else known
    return keys


def prepare_block(block: pa.Table, how: Preparation, known: Any) -> pa.Table:
    """The stage of `prepare`, timed; `known` may be a reference."""
    keep_ray_data_quiet()
    began = time.perf_counter()
    out = prepare(block, how, _get(known))
    return with_time(out, time.perf_counter() - began)


def receipts(
    corpus: Corpus,
    how: Preparation,
    settings: EncoderSettings,
    pool: Pool,
    target: dict[str, Any],
) -> Iterator[pa.Table]:
    """Run a corpus through preparation, encoders and writers; yields a receipt a written block.

    Args:
        corpus: what to read.
        how: columns and fingerprint.
        settings: the encoder.
        pool: sizes.
        target: the keyword arguments of `write` beside the block.
    """
    prepared = corpus.rows(pool).map_batches(
        prepare_block,
        fn_kwargs={"how": how, "known": target["known"]},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.task_cpus,
    )
    with warnings.catch_warnings():
        # A bound on retries has no other way in yet; without it a window that kills its actor is
        # tried for ever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        vectors = prepared.map_batches(
            EncodeBlocks,
            fn_constructor_args=(settings, pool.threads),
            compute=ActorPoolStrategy(size=pool.encoders),
            batch_size=pool.window_rows,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_encoder,
            num_gpus=pool.gpus_per_encoder or None,
            max_task_retries=pool.window_retries,
        )
    written = vectors.map_batches(
        write, fn_kwargs=target, batch_size=None, batch_format="pyarrow", num_cpus=pool.task_cpus
    )
    yield from written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def doubled_rows(
    corpus: Corpus, how: Preparation, pool: Pool, documents: np.ndarray
) -> list[dict[str, Any]]:
    """Read the corpus once more for the rows of ids that stand for several texts.

    Args:
        corpus: what was read.
        how: columns and fingerprint.
        pool: sizes.
        documents: document parts of the keys in question, `S7`, sorted.

    Returns:
        shard, row, doc_id and row_key of every such row, in the order of the corpus.
    """
    found = corpus.rows(pool).map_batches(
        rows_of_documents,
        fn_kwargs={"how": how, "documents": documents},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.task_cpus,
    )
    blocks = found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    rows = [row for block in blocks for row in block.to_pylist()]
    return sorted(rows, key=lambda row: (row["shard"], row["row"], row["row_key"]))


def rows_of_documents(block: pa.Table, how: Preparation, documents: np.ndarray) -> pa.Table:
    """The sound rows of these documents: shard, row, doc_id, row_key."""
    block = sound_rows(block)
    block = block.append_column("row_key", row_keys(block, how.kept_names, how.digest))
    inside = np.isin(document_parts(key_array(block)), documents)
    return block.select(["shard", "row", "doc_id", "row_key"]).filter(pa.array(inside))
