"""Whether each id of a table is one whole document: of one text, each of its chunks there once."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pyarrow as pa

from stella_ray.rows import DOC_BYTES, KEY_BYTES, TEXT_BYTES, key_array
from stella_ray.table.fragments import lance_errors
from stella_ray.table.keys import KnownKeys
from stella_ray.table.vectors import VectorTable

MAX_SUSPECTS = 100_000
"""Rows whose real ids are looked at; by chance, of a billion ids about seven pairs share their 56
bits in the keys."""

CHUNKS = ("chunk", "chunks")


def broken_documents(table: VectorTable, known: KnownKeys) -> tuple[int, int, list[str]]:
    """Search for ids that stand for several texts, and for chunks missing or doubled.

    Sorted keys have a document's rows side by side, in the order of their chunks: the keys and the
    chunks' numbers leave a doubt at few documents, and only of these are the real ids read.

    Returns:
        How many documents there are, how many are broken, and the ids of three of these.
    """
    documents = _starts(known.keys, DOC_BYTES)
    first = np.flatnonzero(np.r_[True, documents[1:] != documents[:-1]][: len(documents)])
    lengths = np.diff(np.r_[first, len(documents)])
    if "chunk" in table.dataset.schema.names:
        doubtful = _doubtful(table, known, documents, first, lengths)
    else:
        doubtful = lengths > 1
    suspects = np.flatnonzero(np.repeat(doubtful, lengths))
    if len(suspects) > MAX_SUSPECTS:
        return len(first), int(doubtful.sum()), []
    broken = _looked_at(table, known, suspects)
    return len(first), len(broken), broken[:3]


def _doubtful(
    table: VectorTable,
    known: KnownKeys,
    documents: np.ndarray,
    first: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Which documents have several texts, or chunks not as they lie in the keys, bool [documents].

    Args:
        table: where the chunks' numbers are.
        known: its keys.
        documents: each key's document part.
        first: where each document begins in the keys.
        lengths: its rows.
    """
    texts = _starts(known.keys, DOC_BYTES + TEXT_BYTES)
    mixed = (documents[1:] == documents[:-1]) & (texts[1:] != texts[:-1])
    mixed |= known.keys[1:] == known.keys[:-1]  # a chunk that is there twice
    doubtful = np.zeros(len(first), bool)
    doubtful[np.searchsorted(first, np.flatnonzero(mixed), "right") - 1] = True
    with lance_errors(table.uri, "reading the chunks' numbers", table.storage):
        for batch in table.dataset.scanner(columns=["row_key", *CHUNKS]).to_batches():
            at = np.searchsorted(known.keys, key_array(batch))
            document = np.searchsorted(first, at, "right") - 1
            wrong = _numbers(batch, "chunk") != at - first[document]
            wrong |= _numbers(batch, "chunks") != lengths[document]
            doubtful[document[wrong]] = True
    return doubtful


def _looked_at(table: VectorTable, known: KnownKeys, suspects: np.ndarray) -> list[str]:
    """The ids among the suspects' whose rows really aren't one whole document."""
    chunked = "chunk" in table.dataset.schema.names
    texts = _starts(known.keys[suspects], DOC_BYTES + TEXT_BYTES).tolist()
    rows = take(table, known.addresses[suspects], ["doc_id", *(CHUNKS if chunked else ())])
    # An unchunked document is one of a single chunk.
    parts = zip(*(_numbers(rows, name).tolist() for name in CHUNKS), strict=True) if chunked else ()
    by_id: dict[str, list[tuple[tuple[int, int], bytes]]] = {}
    for doc_id, part, text in zip(
        rows["doc_id"].to_pylist(), parts or repeat((0, 1), len(rows)), texts, strict=True
    ):
        by_id.setdefault(doc_id, []).append((part, text))
    return [doc_id for doc_id, found in by_id.items() if not _is_whole(found)]


def _is_whole(rows: list[tuple[tuple[int, int], bytes]]) -> bool:
    """Whether the rows of one id are one text's chunks 0 to chunks - 1."""
    chunks = rows[0][0][1]
    return (
        sorted(number for (number, _), _ in rows) == list(range(chunks))
        and len({(count, text) for (_, count), text in rows}) == 1
    )


def take(table: VectorTable, addresses: np.ndarray, columns: list[str]) -> pa.Table:
    """Read few rows, in the order of the addresses."""
    with lance_errors(table.uri, "reading rows", table.storage):
        return table.dataset._take_rows(addresses.tolist(), columns=columns)


def _numbers(rows: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    """An int32 column; nulls are -1."""
    numbers: np.ndarray = rows.column(name).fill_null(-1).to_numpy()
    return numbers


def _starts(keys: np.ndarray, count: int) -> np.ndarray:
    """The first `count` bytes of each key, `S{count}` [rows]."""
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)
    return np.ascontiguousarray(raw[:, :count]).view(f"S{count}").reshape(-1)
