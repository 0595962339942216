"""A run's own stages without encoder and writer: what it would do, counted before it does.

Rows are read, keyed, looked for in the table and tokenised as a run does it, and the same books are
kept; so counts and tokens are a run's own, or of a sample of the shards, scaled by bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stella_ray.errors import IncompleteRun
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.corpus import ShardedCorpus
from stella_ray.pipeline.embed import prepared
from stella_ray.pipeline.estimate import Estimate, RejectCounts
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.ledger import Ledger
from stella_ray.pipeline.settle import Guards, check_guards, note_rejects, settle_doubled
from stella_ray.pipeline.shards import Shard
from stella_ray.pipeline.write import observed
from stella_ray.receipts import RECEIPT
from stella_ray.rows import FRESH, REFRESHED, chunk_keys, key_array
from stella_ray.table.keys import KnownKeys

FORECAST = RECEIPT.append(pa.field("text_bytes", pa.int64()))
"""A receipt of rows that weren't written, and the bytes of text that would have been."""

ROW_BYTES = 120
"""Of a row beside its vector and text: key, id, counts, the run's name; scalar indexes of these."""


def estimate(
    corpus: ShardedCorpus,
    how: Preparation,
    pool: Pool,
    known: KnownKeys,
    guards: Guards,
    schema: pa.Schema,
    share: float,
) -> Estimate:
    """Count what a run would do.

    Args:
        corpus: what it would read.
        how: columns and encoder.
        pool: sizes.
        known: the keys that it would begin with.
        guards: what it must not do.
        schema: the table's.
        share: of the corpus's bytes to read.

    Raises:
        StellaError: what the run would raise at once: a shard that can't be read, say.
    """
    some = replace(corpus, shards=sample(corpus.shards, share))
    read = some.bytes / corpus.bytes if corpus.bytes else 1.0
    ledger, rejects = Ledger(known), RejectCounts()
    text_bytes = 0
    for receipt in forecasts(some, how, pool, known):
        ledger.add(receipt)
        note_rejects(receipt, some, rejects)
        text_bytes += sum(receipt.column("text_bytes").to_pylist())
    settle_doubled(ledger, some, how, pool, rejects)
    whole = len(some.shards) == len(corpus.shards)
    out = Estimate(len(corpus.shards), len(some.shards), read)
    embedded, out.refreshed = ledger.embedded_and_refreshed()
    gone, before = ledger.vanished_documents()
    counts = ledger.counts
    out.changed = ledger.gone() - gone - out.refreshed
    out.new, out.unchanged = embedded - out.changed, ledger.unchanged + out.refreshed
    out.rejected, out.repeated, out.bad_shards = counts.rejected, ledger.repeated, counts.bad_shards
    out.tokens, out.truncated = counts.tokens, counts.truncated
    vector = schema.field("vector").type
    each = vector.list_size * vector.value_type.bit_width // 8 + ROW_BYTES
    out.written_bytes = len(distinct_rows(ledger)) * each + text_bytes
    out.rejects, out.places = dict(rejects.reasons), rejects.places
    if whole:
        if counts.bad_shards:
            ledger.keep_unseen()
        else:
            out.deleted = gone
        out.table_rows = len(ledger.expected())
        try:
            check_guards(ledger, guards, rejects.uri)
        except IncompleteRun as error:
            out.refused = str(error)
        return out
    _scale(out, 1 / read)
    seen = out.unchanged + out.changed
    out.deleted = max(0, before - seen)
    rows_each = len(ledger.expected()) / max(1, ledger.documents())
    out.table_rows = round((out.new + seen) * rows_each)
    if out.deleted > guards.max_delete_fraction * before:
        out.refused = (
            f"about {out.deleted:,} of the table's {before:,} documents seem to be gone, more than"
            f" max_delete_fraction {guards.max_delete_fraction:g}; --estimate.share 1 counts them"
        )
    if counts.rejected > guards.max_reject_fraction * counts.rows_read:
        out.refused = f"{counts.rejected:,} of {counts.rows_read:,} rows read were rejected"
    return out


def _scale(out: Estimate, factor: float) -> None:
    names = ("new", "changed", "unchanged", "refreshed", "rejected", "repeated", "truncated")
    for name in (*names, "tokens", "written_bytes"):
        setattr(out, name, round(getattr(out, name) * factor))


def distinct_rows(ledger: Ledger) -> np.ndarray:
    """Keys of the rows that would be written, each once."""
    return np.unique(ledger.written())


def sample(shards: Sequence[Shard], share: float) -> list[Shard]:
    """Shards of about this share of the bytes, evenly spread over their order; at least one."""
    if share >= 1:
        return list(shards)
    count = max(1, math.ceil(len(shards) * share))
    places = np.linspace(0, len(shards) - 1, count + 2)[1:-1].round().astype(int)
    return [shards[i] for i in np.unique(places).tolist()]


def forecasts(
    corpus: ShardedCorpus, how: Preparation, pool: Pool, known: KnownKeys
) -> Iterator[pa.Table]:
    """Yield `FORECAST` tables: the receipts of a run that neither encodes nor writes."""
    blocks = prepared(corpus, how, pool, ray.put(known)).map_batches(
        forecast, batch_size=None, batch_format="pyarrow", num_cpus=pool.task_cpus
    )
    yield from blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def forecast(block: pa.Table) -> pa.Table:
    """The receipt of a prepared block as if all its fresh rows got a unit vector."""
    rows, fates, told = observed(block)
    fresh = rows.take(np.flatnonzero(fates == FRESH))
    kept = rows.take(np.flatnonzero(fates == REFRESHED))
    counts = kept.column("known_rows").to_numpy()
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    refreshed = key_array(kept)
    if (counts > 1).any():
        refreshed = chunk_keys(np.repeat(refreshed, counts), numbers)
    tokens = encoded_tokens(fresh)
    texts = fresh.column("text") if "text" in fresh.column_names else pa.chunked_array([[""]])
    receipt = {
        **told,
        "fragments": [],
        "truncated": pc.sum(fresh.column("truncated")).as_py() or 0,
        "tokens": tokens,
        "padded_tokens": tokens,
        "encode_seconds": 0.0,
        "write_seconds": 0.0,
        "fresh_keys": key_array(fresh).tobytes(),
        "refreshed_keys": refreshed.tobytes(),
        "broken": b"",
        "windows": [],
        "samples": [],
        "text_bytes": pc.sum(pc.binary_length(texts)).as_py() or 0,
    }
    return pa.Table.from_pylist([receipt], schema=FORECAST)


def encoded_tokens(rows: pa.Table) -> int:
    """Tokens of these rows' texts; equal ones are encoded once."""
    ids = rows.column("token_ids").combine_chunks()
    raw = ids.values.to_numpy()
    ends = ids.offsets.to_numpy()
    return sum(map(len, {raw[a:b].tobytes(): raw[a:b] for a, b in pairwise(ends)}.values()))
