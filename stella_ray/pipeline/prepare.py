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

from stella_ray.encode.hub import model_folder
from stella_ray.encode.models import EncoderSpec
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.pipeline.ledger import document_parts
from stella_ray.rows import (
    DOC_BYTES,
    FRESH,
    REFRESHED,
    REJECTED,
    REPEATED,
    TEXT_BYTES,
    UNCHANGED,
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

    @property
    def kept_names(self) -> list[str]:
        """The names of the kept columns."""
        return [field.name for field in self.kept]


def prepare(block: pa.Table, how: Preparation, known: KnownKeys) -> pa.Table:
    """Give every row its key and fate, and the fresh ones their token ids.

    1. Reject what can't be embedded. 2. Key each row. 3. Drop the text of what is known, mark what
    was seen. 4. Tokenise the rest.

    Args:
        block: of the schema `rows.source(how.kept)`.
        how: encoder and columns.
        known: the table's keys.

    Returns:
        A block of the schema `rows.prepared`, the same rows in the same order.
    """
    reasons = _reasons(block)
    keys = row_keys(block, how.kept_names, how.digest)
    fates, known_at = _fates(keys, reasons, known)
    fresh = np.flatnonzero(fates == FRESH)
    texts = block.column("text").take(pa.array(fresh)).to_pylist()
    tokenizer = _tokenizer(how.spec)
    tokens = tokenizer(texts, how.spec.prefix_text(how.spec.prefix))
    counts = np.zeros(len(block), np.int64)
    counts[fresh] = tokens.lengths
    truncated = np.zeros(len(block), bool)
    truncated[fresh] = tokens.truncated
    written = pa.array(np.isin(fates, (FRESH, REFRESHED)))
    id_type = pa.from_numpy_dtype(tokenizer.id_type)
    token_ids = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), pa.array(tokens.values, id_type)
    )
    columns = {name: block.column(name) for name in block.column_names}
    if how.store_text:
        columns["text"] = pc.if_else(written, columns["text"], pa.scalar(None, pa.string()))
    columns |= {
        "row_key": keys,
        "fate": pa.array(fates, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "known_at": pa.array(known_at),
        "token_ids": token_ids,
        "n_tokens": pa.array(counts, pa.int32()),
        "truncated": pa.array(truncated),
    }
    schema = prepared(how.kept, how.store_text, id_type)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


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
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's fate and, where the table has its text, the position among the known keys."""
    own = key_array(pa.table({"row_key": keys}))
    exact = known.find(own)
    same_text = known.find(own, DOC_BYTES + TEXT_BYTES)
    known_at = np.where(exact >= 0, exact, same_text)
    fates = np.where(exact >= 0, UNCHANGED, np.where(same_text >= 0, REFRESHED, FRESH))
    rejected = np.array([reason is not None for reason in reasons], bool)
    first = np.zeros(len(own), bool)
    sound = np.flatnonzero(~rejected)
    first[sound[np.unique(own[sound], return_index=True)[1]]] = True
    fates = np.where(rejected, REJECTED, np.where(first, fates, REPEATED)).astype(object)
    known_at = np.where(np.isin(fates, (UNCHANGED, REFRESHED)), known_at, -1)
    return fates, known_at


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
