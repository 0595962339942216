"""What becomes of a row before the encoder: rejected, known, or tokenised.

Rows that stay as they are never leave the task that read them; a row that sums them up does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stella_ray.encode.chunks import Chunks, chunk_texts
from stella_ray.encode.hub import model_folder
from stella_ray.encode.models import EncoderSpec
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.pipeline.judge import Judged, Preparation, judge, resolved
from stella_ray.rows import (
    FRESH,
    REPEATED,
    STAYED,
    SUMMARY,
    UNCHANGED,
    chunk_keys,
    key_column,
    prepared,
)


def prepare_block(
    block: pa.Table, how: Preparation, known: Any, window_rows: int
) -> Iterator[pa.Table]:
    """The first stage: what becomes of each row; those that stay where they are stay here.

    1. Judge every row: reject what can't be embedded, key the rest, look for it in the table.
    2. Sum up the unchanged and repeated rows in one. 3. Tokenise the others, a window at a time.

    Args:
        block: of the schema `rows.source(how.kept)`.
        how: encoder and columns.
        known: the table's keys, or a reference to them.
        window_rows: documents to tokenise before they are passed on.

    Yields:
        Tables of the schema `rows.prepared`; at least one, since a block costs time.
    """
    keep_ray_data_quiet()
    began = time.perf_counter()
    judged = judge(block, how, resolved(known))
    stays = (judged.fates == UNCHANGED) | (judged.fates == REPEATED)
    moving = np.flatnonzero(~stays)
    if stays.any() or not len(moving):
        told = summary(block, judged, np.flatnonzero(stays), how)
        yield with_time(told, time.perf_counter() - began)
        began = time.perf_counter()
    for start in range(0, len(moving), window_rows):
        part = moving[start : start + window_rows]
        out = tokenised(block.take(pa.array(part)), judged.take(part), how)
        yield with_time(out, time.perf_counter() - began)
        began = time.perf_counter()


def summary(block: pa.Table, judged: Judged, rows: np.ndarray, how: Preparation) -> pa.Table:
    """One row for these rows, which are unchanged or repeated, with their costs; `rows.STAYED`."""
    there = judged.take(rows[judged.fates[rows] == UNCHANGED])
    costs = {
        name: float(block.column(name).to_numpy()[rows].sum(dtype=np.float64))
        for name in ("shard_bytes", "read_seconds")
    }
    stayed = {
        "rows": len(rows),
        "repeated": len(rows) - len(there.keys),
        "seen": ranges(there.known_at, there.known_rows).tobytes(),
    }
    one = {"shard": -1, "row": -1, "fate": SUMMARY, "stayed": stayed, **costs}
    schema = prepared(how.kept, how.store_text, _id_type(how))
    return pa.Table.from_pylist([one], schema=schema)


def tokenised(block: pa.Table, judged: Judged, how: Preparation) -> pa.Table:
    """Judged rows, the fresh ones with their token ids, a row for each chunk of a long document.

    Args:
        block: of the schema `rows.source(how.kept)`.
        judged: its rows' keys and fates.
        how: encoder and columns.

    Returns:
        A block of the schema `rows.prepared`, the same rows in the same order; the chunks of a
        document stand in its place.
    """
    fates = judged.fates
    fresh = np.flatnonzero(fates == FRESH)
    texts = block.column("text").take(pa.array(fresh)).to_pylist()
    cut = _cut(_tokenizer(how.spec), texts, how)
    tokens = cut.tokens
    # Each row's document: a chunked one has several.
    repeats = np.ones(len(block), np.int64)
    repeats[fresh] = np.bincount(cut.document, minlength=len(fresh))
    rows = np.repeat(np.arange(len(block)), repeats)
    at = np.flatnonzero(fates[rows] == FRESH)

    def spread(values: np.ndarray) -> np.ndarray:
        """A value for every row, from those of the fresh ones; 0 for the others."""
        out = np.zeros(len(rows), np.int64)
        out[at] = values
        return out

    counts = spread(tokens.lengths)
    id_type = _id_type(how)
    token_ids = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), pa.array(tokens.values, id_type)
    )
    numbers = spread(cut.number)
    keys = judged.keys
    if len(rows) > len(block):
        block, judged = block.take(pa.array(rows)), judged.take(rows)
        keys, fates = chunk_keys(judged.keys, numbers), judged.fates
    columns = {name: block.column(name) for name in block.column_names}
    if how.store_text and how.chunk_overlap is None:
        columns["text"] = pc.if_else(
            pa.array(fates == FRESH), columns["text"], pa.scalar(None, pa.string())
        )
    elif how.store_text:
        columns["text"] = _parts(fates, texts, cut)
    # A document's costs count once.
    first = pa.array((numbers == 0).astype(np.float32))
    columns |= {name: pc.multiply(columns[name], first) for name in ("shard_bytes", "read_seconds")}
    columns |= {
        "row_key": key_column(keys),
        "fate": pa.array(fates, pa.string()),
        "reason": judged.reasons,
        "known_at": pa.array(judged.known_at),
        "known_rows": pa.array(judged.known_rows, pa.int32()),
        "chunk": pa.array(numbers, pa.int32()),
        "chunks": pa.array(spread(repeats[fresh][cut.document]), pa.int32()),
        "chunk_start": pa.array(spread(cut.start), pa.int32()),
        "chunk_end": pa.array(spread(cut.end), pa.int32()),
        "token_ids": token_ids,
        "n_tokens": pa.array(counts, pa.int32()),
        "truncated": pa.array(spread(tokens.truncated).astype(bool)),
        "stayed": pa.nulls(len(rows), STAYED),
        "prepared_at": pa.nulls(len(rows), pa.float64()),
    }
    schema = prepared(how.kept, how.store_text, id_type)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _id_type(how: Preparation) -> pa.DataType:
    return pa.from_numpy_dtype(_tokenizer(how.spec).id_type)


def _cut(tokenizer: TextTokenizer, texts: list[str], how: Preparation) -> Chunks:
    """The texts' tokens: a chunk a text, or several for a long one."""
    prefix = how.spec.prefix_text(how.spec.prefix)
    if how.chunk_overlap is not None:
        return chunk_texts(tokenizer, texts, prefix, how.chunk_overlap)
    zeros = np.zeros(len(texts), np.int32)
    lengths = np.fromiter(map(len, texts), np.int32, len(texts))
    return Chunks(tokenizer(texts, prefix), np.arange(len(texts)), zeros, zeros, lengths)


def _parts(fates: np.ndarray, texts: list[str], cut: Chunks) -> pa.Array:
    """The part of its document that each fresh row stores."""
    out = np.full(len(fates), None, object)
    out[fates == FRESH] = [
        texts[i][start:end]
        for i, start, end in zip(
            cut.document.tolist(), cut.start.tolist(), cut.end.tolist(), strict=True
        )
    ]
    return pa.array(out, pa.string())


def with_time(block: pa.Table, seconds: float) -> pa.Table:
    """Add the stage's time to the rows' `read_seconds`, shared evenly; they set off now."""
    at = block.schema.get_field_index("read_seconds")
    share = pa.scalar(seconds / max(1, len(block)), pa.float32())
    block = block.set_column(at, block.schema.field(at), pc.add(block.column(at), share))
    at = block.schema.get_field_index("prepared_at")
    now = pa.repeat(pa.scalar(time.time()), len(block))
    return block.set_column(at, block.schema.field(at), now)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, … of each range, one after another, int64."""
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    out: np.ndarray = np.repeat(starts, counts) + inside
    return out.astype(np.int64)


@functools.lru_cache(maxsize=2)
def _tokenizer(spec: EncoderSpec) -> TextTokenizer:
    """One tokenizer a process: loading a large vocabulary takes a second."""
    folder = Path(spec.folder)
    if not folder.exists():  # another node than the driver's, with a cache of its own
        folder = model_folder(spec.name, spec.revision)
    return TextTokenizer(folder, spec.max_tokens)
