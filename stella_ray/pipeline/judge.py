"""What becomes of a row: its key, and its fate by what the table has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stella_ray.encode.models import EncoderSpec
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


@dataclass(frozen=True)
class Judged:
    """What becomes of each row of a block.

    Attributes:
        keys: the row keys, `S16` [rows].
        fates: FRESH and its like, object [rows].
        known_at: where the table has its document, among the known keys, else -1, int64 [rows].
        known_rows: how many rows the table has of it, int32 [rows].
        reasons: why it can't be embedded, null where it can, string [rows].
    """

    keys: np.ndarray
    fates: np.ndarray
    known_at: np.ndarray
    known_rows: np.ndarray
    reasons: pa.Array

    def take(self, rows: np.ndarray) -> Judged:
        """Those of these rows."""
        return Judged(
            self.keys[rows],
            self.fates[rows],
            self.known_at[rows],
            self.known_rows[rows],
            self.reasons.take(pa.array(rows)),
        )


def judge(block: pa.Table, how: Preparation, known: KnownKeys) -> Judged:
    """Give every row its key and its fate.

    Args:
        block: of the schema `rows.source(how.kept)`.
        how: encoder and columns.
        known: the table's keys.
    """
    reasons = _reasons(block)
    keys = key_array(pa.table({"row_key": row_keys(block, how.kept_names, how.digest)}))
    rejected = reasons.is_valid().to_numpy(zero_copy_only=False)
    at, rows = known.find_documents(keys)
    fates = np.full(len(keys), UNCHANGED, object)
    new = np.flatnonzero(at < 0)
    if len(new):  # the same text may be there with other kept columns
        at[new], rows[new] = known.find_documents(keys[new], DOC_BYTES + TEXT_BYTES)
        fates[new] = np.where(at[new] >= 0, REFRESHED, FRESH)
    sound = np.flatnonzero(~rejected)
    again = np.ones(len(keys), bool)
    again[sound[np.unique(keys[sound], return_index=True)[1]]] = False
    fates[again] = REPEATED
    fates[rejected] = REJECTED
    gone = again | rejected
    at[gone], rows[gone] = -1, 0
    return Judged(keys, fates, at, rows, reasons)


def sound_rows(block: pa.Table) -> pa.Table:
    """The rows that nothing is wrong with."""
    return block.filter(_reasons(block).is_null())


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


def _reasons(block: pa.Table) -> pa.Array:
    """Why each row can't be embedded, null where it can."""
    text, doc_id = block.column("text"), block.column("doc_id")
    empty, blank = pc.equal(pc.binary_length(text), 0), pc.utf8_is_space(text)
    no_id = pc.equal(pc.fill_null(pc.binary_length(doc_id), 0), 0)
    faults = (pc.is_valid(block.column("reason")), pc.is_null(text), empty, blank, no_id)
    if not any(pc.any(fault).as_py() for fault in faults):
        return pa.nulls(len(block), pa.string())
    return pc.case_when(
        pc.make_struct(*(pc.fill_null(fault, False) for fault in faults)),
        block.column("reason"),
        "the text is null",
        "the text is empty",
        "the text is blank",
        "the id is missing",
    ).combine_chunks()
