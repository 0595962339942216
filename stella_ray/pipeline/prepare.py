"""What becomes of a row before the encoder: rejected, known, or tokenised."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stella_ray.encode.chunks import Chunks, chunk_texts
from stella_ray.encode.hub import model_folder
from stella_ray.encode.models import EncoderSpec
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.pipeline.ledger import document_parts
from stella_ray.rows import (
    DOC_BYTES,
    FRESH,
    KEY_BYTES,
    REFRESHED,
    REJECTED,
    REPEATED,
    TEXT_BYTES,
    UNCHANGED,
    chunk_keys,
    key_array,
    prepared,
    row_keys,
)
from stella_ray.table.keys import KnownKeys


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What every worker needs in order to prepare rows."""

    kept: tuple[pa.Field, ...]
    store_text: bool
    spec: EncoderSpec
    digest: str
    """The fingerprint's digest, part of each row_key."""
    chunk_overlap: int | None = None
    """Tokens that a long document's chunks share with their neighbours; None: it is cut off."""

    @property
    def kept_names(self) -> list[str]:
        """The names of the kept columns."""
        return [field.name for field in self.kept]


def prepare(block: pa.Table, how: Preparation, known: KnownKeys) -> pa.Table:
    """Give every row its key and fate, and the fresh ones their token ids.

    1. Reject what can't be embedded. 2. Key each row. 3. Drop the text of what is known, mark what
    was seen. 4. Tokenise the rest, and make a row of each chunk of a long document.

    Args:
        block: of the schema `rows.source(how.kept)`.
        how: encoder and columns.
        known: the table's keys.

    Returns:
        A block of the schema `rows.prepared`, the same rows in the same order; the chunks of a
        document stand in its place.
    """
    reasons = _reasons(block)
    keys = row_keys(block, how.kept_names, how.digest)
    fates, known_at, known_rows = _fates(keys, reasons, known)
    fresh = np.flatnonzero(fates == FRESH)
    texts = block.column("text").take(pa.array(fresh)).to_pylist()
    tokenizer = _tokenizer(how.spec)
    cut = _cut(tokenizer, texts, how)
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
    id_type = pa.from_numpy_dtype(tokenizer.id_type)
    token_ids = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), pa.array(tokens.values, id_type)
    )
    numbers = spread(cut.number)
    if len(rows) > len(block):
        block, fates = block.take(pa.array(rows)), fates[rows]
        known_at, known_rows = known_at[rows], known_rows[rows]
        reasons = [reasons[i] for i in rows.tolist()]
        own = chunk_keys(key_array(pa.table({"row_key": keys}))[rows], numbers)
        keys = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(KEY_BYTES), len(own), [None, pa.py_buffer(own.tobytes())]
        )
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
        "row_key": keys,
        "fate": pa.array(fates, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "known_at": pa.array(known_at),
        "known_rows": pa.array(known_rows, pa.int32()),
        "chunk": pa.array(numbers, pa.int32()),
        "chunks": pa.array(spread(repeats[fresh][cut.document]), pa.int32()),
        "chunk_start": pa.array(spread(cut.start), pa.int32()),
        "chunk_end": pa.array(spread(cut.end), pa.int32()),
        "token_ids": token_ids,
        "n_tokens": pa.array(counts, pa.int32()),
        "truncated": pa.array(spread(tokens.truncated).astype(bool)),
    }
    schema = prepared(how.kept, how.store_text, id_type)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


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


def sound_rows(block: pa.Table) -> pa.Table:
    """The rows that nothing is wrong with."""
    return block.filter(pa.array([reason is None for reason in _reasons(block)], pa.bool_()))


def with_time(block: pa.Table, seconds: float) -> pa.Table:
    """Add a stage's time to the rows' `read_seconds`, shared evenly."""
    at = block.schema.get_field_index("read_seconds")
    share = pa.scalar(seconds / max(1, len(block)), pa.float32())
    return block.set_column(at, block.schema.field(at), pc.add(block.column(at), share))


def _reasons(block: pa.Table) -> list[str | None]:
    """Why each row can't be embedded, None where it can."""
    text, doc_id = block.column("text"), block.column("doc_id")
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(text, ""))), 0)
    empty = pc.equal(pc.binary_length(pc.fill_null(text, "")), 0)
    no_id = pc.equal(pc.binary_length(pc.fill_null(doc_id, "")), 0)
    choice = pc.case_when(
        pc.make_struct(pc.is_valid(block.column("reason")), pc.is_null(text), empty, blank, no_id),
        block.column("reason"),
        "the text is null",
        "the text is empty",
        "the text is blank",
        "the id is missing",
    )
    reasons: list[str | None] = choice.to_pylist()
    return reasons


def _fates(
    keys: pa.Array, reasons: list[str | None], known: KnownKeys
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's fate; where the table has its text, the place and number of its rows there."""
    own = key_array(pa.table({"row_key": keys}))
    exact, exact_rows = known.find_documents(own)
    same_text, same_text_rows = known.find_documents(own, DOC_BYTES + TEXT_BYTES)
    known_at = np.where(exact >= 0, exact, same_text)
    known_rows = np.where(exact >= 0, exact_rows, same_text_rows)
    fates = np.where(exact >= 0, UNCHANGED, np.where(same_text >= 0, REFRESHED, FRESH))
    rejected = np.array([reason is not None for reason in reasons], bool)
    first = np.zeros(len(own), bool)
    sound = np.flatnonzero(~rejected)
    first[sound[np.unique(own[sound], return_index=True)[1]]] = True
    fates = np.where(rejected, REJECTED, np.where(first, fates, REPEATED)).astype(object)
    there = np.isin(fates, (UNCHANGED, REFRESHED))
    return fates, np.where(there, known_at, -1), np.where(there, known_rows, 0)


@functools.lru_cache(maxsize=2)
def _tokenizer(spec: EncoderSpec) -> TextTokenizer:
    """One tokenizer a process: loading a large vocabulary takes a second."""
    folder = Path(spec.folder)
    if not folder.exists():  # another node than the driver's, with a cache of its own
        folder = model_folder(spec.name, spec.revision)
    return TextTokenizer(folder, spec.max_tokens)


def prepare_block(block: pa.Table, how: Preparation, known: Any) -> pa.Table:
    """The stage of `prepare`, timed; `known` may be a reference."""
    keep_ray_data_quiet()
    began = time.perf_counter()
    out = prepare(block, how, resolved(known))
    return with_time(out, time.perf_counter() - began)


def rows_of_documents(block: pa.Table, how: Preparation, documents: np.ndarray) -> pa.Table:
    """The sound rows of these documents: shard, row, doc_id, row_key."""
    block = sound_rows(block)
    block = block.append_column("row_key", row_keys(block, how.kept_names, how.digest))
    inside = np.isin(document_parts(key_array(block)), documents)
    return block.select(["shard", "row", "doc_id", "row_key"]).filter(pa.array(inside))


def resolved(known: Any) -> KnownKeys:
    """The known keys, zero-copy from the object store where they are a reference."""
    keys: KnownKeys = ray.get(known) if isinstance(known, ray.ObjectRef) else known
    return keys
