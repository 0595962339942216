"""What a row holds at each station of the flow, and the key that says whether it is known.

    SOURCE    a shard's row as read: id, text and kept columns, or the reason why it can't be used
    PREPARED  its key, its fate and, where it must be embedded, its token ids; a long document that
              is cut into chunks becomes a row for each of them here
    EMBEDDED  the same with a vector in place of the token ids
    RECEIPT   one row for each written block: fragments, counts, what was seen (`receipts.py`)

Rows that must be written or named travel together, whatever their fate; those that stay as they are
leave the first task as one row that sums them up. So a stage is a function from block to block and
each count is a sum over rows. A row carries its own share of the costs (`*_seconds`,
`shard_bytes`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stella_ray.errors import CorpusError

FRESH, UNCHANGED, REFRESHED = "fresh", "unchanged", "refreshed"
REPEATED, REJECTED = "repeated", "rejected"
"""A row's fate: to be embedded; in the table as it is; in the table, but its kept columns changed
(the old vector is kept); the same in all as a row before it; not usable."""

SUMMARY = "summary"
"""In the place of a fate: one row for all the unchanged and repeated ones of a window, `STAYED`."""

STAYED = pa.struct(
    [
        pa.field("rows", pa.int64()),
        pa.field("repeated", pa.int64()),
        pa.field("seen", pa.binary()),
    ]
)
"""How many rows stay where they are, how many of these repeat another, and where the table has the
unchanged ones: int64 positions among the known keys."""

KEY_BYTES = 16
DOC_BYTES, TEXT_BYTES, KEPT_BYTES = 7, 5, 4
"""A row_key's parts: 56 bits of the id, 40 of the text under this encoder, 32 of the kept columns.

Parts instead of one hash, so that a key also answers "same document?" (doubled ids) and "same
text?" (a vector that may stay). A changed text goes unseen with probability 2**-40. Two ids that
share their 56 bits cost nothing but a look at the real ids. The last part's top bit is 0, so that
the number of a chunk can be added to it: the chunks of a document lie side by side in sorted keys.
"""

CHUNK = [
    pa.field("chunk", pa.int32()),
    pa.field("chunks", pa.int32()),
    pa.field("chunk_start", pa.int32()),
    pa.field("chunk_end", pa.int32()),
]
"""A chunk's number in its document, from 0; how many there are; its span of the document's
characters, `text[chunk_start:chunk_end]`."""

ORIGIN = [pa.field("shard", pa.int32()), pa.field("row", pa.int64())]
"""Where a row came from: index in the list of shards (-1: a Ray Dataset) and row in it, from 0."""

COSTS = [pa.field("shard_bytes", pa.float32()), pa.field("read_seconds", pa.float32())]

WINDOW = pa.struct(
    [
        pa.field("actor", pa.string()),
        pa.field("node", pa.string()),
        pa.field("rows", pa.int32()),
        pa.field("tokens", pa.int64()),
        pa.field("padded_tokens", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("matrix_seconds", pa.float64()),
        pa.field("began", pa.float64()),
        pa.field("ended", pa.float64()),
        pa.field("queued", pa.float64()),
        pa.field("halvings", pa.int32()),
    ]
)
"""What an encoder did with one window: rows and tokens that it encoded; the device's seconds, and
those that its matrix units need for as much at their full rate (0 where that isn't known); when it
began and ended, in seconds since 1970; how long the window had waited for it; how often the token
budget was halved."""


def source(kept: Sequence[pa.Field]) -> pa.Schema:
    """A shard's rows as read; `reason` is null where nothing is wrong so far."""
    return pa.schema(
        [
            *ORIGIN,
            pa.field("doc_id", pa.string()),
            pa.field("text", pa.string()),
            *kept,
            pa.field("reason", pa.string()),
            *COSTS,
        ]
    )


def prepared(kept: Sequence[pa.Field], store_text: bool, id_type: pa.DataType) -> pa.Schema:
    """Rows with a fate; `id_type` is uint16 where the vocabulary allows it.

    `prepared_at`, in seconds since 1970, is when a row set off for the encoder.
    """
    return pa.schema(
        [
            *ORIGIN,
            pa.field("doc_id", pa.string()),
            *kept,
            *([pa.field("text", pa.string())] if store_text else []),
            pa.field("row_key", pa.binary(KEY_BYTES)),
            pa.field("fate", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("known_at", pa.int64()),
            pa.field("known_rows", pa.int32()),
            *CHUNK,
            pa.field("token_ids", pa.list_(id_type)),
            pa.field("n_tokens", pa.int32()),
            pa.field("truncated", pa.bool_()),
            pa.field("stayed", STAYED),
            pa.field("prepared_at", pa.float64()),
            *COSTS,
        ]
    )


def embedded(prepared_schema: pa.Schema) -> pa.Schema:
    """Prepared rows after the encoder: `vector` (float32, empty unless fresh) for `token_ids`.

    `reference` is a sampled row's vector by a second, plain way (`receipts.SAMPLE`), else empty.
    `window` stands in the first row that the window encoded, so that each window counts once.
    """
    rest = [field for field in prepared_schema if field.name != "token_ids"]
    return pa.schema(
        [
            *rest,
            pa.field("vector", pa.list_(pa.float32())),
            pa.field("reference", pa.list_(pa.float32())),
            pa.field("padded_tokens", pa.int32()),
            pa.field("encode_seconds", pa.float32()),
            pa.field("window", WINDOW),
        ]
    )


def table_schema(
    kept: Sequence[pa.Field],
    store_text: bool,
    dim: int,
    vector_type: pa.DataType,
    *,
    chunked: bool = False,
) -> pa.Schema:
    """The columns of the vector table; `chunked` where long documents have several rows."""
    return pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            *(CHUNK if chunked else []),
            *kept,
            *([pa.field("text", pa.string())] if store_text else []),
            pa.field("vector", pa.list_(vector_type, dim)),
            pa.field("n_tokens", pa.int32()),
            pa.field("truncated", pa.bool_()),
            pa.field("row_key", pa.binary(KEY_BYTES)),
            pa.field("run_id", pa.string()),
        ]
    )


RESERVED = frozenset(
    name
    for schema in (
        prepared([], True, pa.int32()),
        embedded(prepared([], True, pa.int32())),
        table_schema([], True, 1, pa.float32()),
    )
    for name in schema.names
) | {"id", "score", "_distance", "_rowid", "_rowaddr"}
"""Names that kept columns can't have: the table's own, and what a search adds to a hit."""


def check(block: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Order and cast the columns of `block` to `schema`.

    Raises:
        CorpusError: a column is missing, or can't be cast.
    """
    missing = [name for name in schema.names if name not in block.column_names]
    if missing:
        raise CorpusError(f"{where}: no column {missing}; it has {block.column_names}")
    try:
        return block.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CorpusError(f"{where}: {' '.join(str(error).split())}") from None


def key_array(block: pa.Table | pa.RecordBatch, column: str = "row_key") -> np.ndarray:
    """The keys of a block as a NumPy array of 16-byte strings, `S16`."""
    keys = block.column(column)
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    start = keys.offset * KEY_BYTES
    data = memoryview(keys.buffers()[1] or b"")[start : start + len(keys) * KEY_BYTES]
    return np.frombuffer(data, dtype=f"S{KEY_BYTES}")


def key_column(keys: np.ndarray) -> pa.Array:
    """`S16` keys as a column."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys.tobytes())]
    )


def row_keys(block: pa.Table, kept: Sequence[str], fingerprint: str) -> pa.Array:
    """The row_key of each row of `block` (columns doc_id, text and `kept`), BLAKE2b in three parts.

    Null ids and texts count as empty; such rows are rejected anyway.
    """
    ids, texts = (_cells(block.column(name)) for name in ("doc_id", "text"))
    blake2b, begun = hashlib.blake2b, hashlib.blake2b(fingerprint.encode(), digest_size=TEXT_BYTES)
    text_hashes = [begun.copy() for _ in texts]
    for hasher, text in zip(text_hashes, texts, strict=True):
        hasher.update(text)
    parts = zip(
        [blake2b(doc_id, digest_size=DOC_BYTES).digest() for doc_id in ids],
        [hasher.digest() for hasher in text_hashes],
        _kept_hashes(block, kept),
        strict=True,
    )
    out = b"".join(itertools.chain.from_iterable(parts))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(block), [None, pa.py_buffer(out)]
    )


def chunk_keys(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The keys of chunks: a document's key with the chunk's number added to its last part.

    Args:
        keys: document keys, `S16` [chunks].
        numbers: of each chunk in its document, int [chunks].
    """
    raw = np.array(keys, f"S{KEY_BYTES}").view(np.uint8).reshape(len(keys), KEY_BYTES)
    last = raw[:, -KEPT_BYTES:].copy().view(">u4").reshape(-1)
    raw[:, -KEPT_BYTES:] = (
        (last + np.asarray(numbers, np.uint32))
        .astype(">u4")
        .view(np.uint8)
        .reshape(len(keys), KEPT_BYTES)
    )
    return raw.view(f"S{KEY_BYTES}").reshape(-1)


def _cells(column: pa.ChunkedArray) -> list[bytes]:
    """Each cell's bytes; of a null none."""
    cells: list[bytes] = []
    for chunk in column.cast(pa.large_binary()).chunks:
        if chunk.null_count:
            chunk = pc.fill_null(chunk, b"")
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        # From the first cell to the last: a slice shares its buffer with all the rest.
        held = data.slice(ends[0], ends[-1] - ends[0]).to_pybytes() if data else b""
        places = (ends - ends[:1]).tolist()
        cells += [held[a:b] for a, b in itertools.pairwise(places)]
    return cells


def _kept_hashes(block: pa.Table, kept: Sequence[str]) -> list[bytes]:
    if not kept:
        return [bytes(KEPT_BYTES)] * len(block)
    lengths, columns = [], []
    for name in kept:
        words = _words(block.column(name)).combine_chunks()
        # The lengths in front keep ("a\x1f", "b") apart from ("a", "\x1fb"), and null from "".
        lengths.append(pc.fill_null(pc.cast(pc.binary_length(words), pa.string()), ""))
        columns.append(pc.fill_null(words, ""))
    joined = pc.binary_join_element_wise(*lengths, *columns, "\x1f")
    hashes = [
        hashlib.blake2b(cell, digest_size=KEPT_BYTES).digest()
        for cell in _cells(pa.chunked_array([joined]))
    ]
    return [bytes([part[0] & 0x7F]) + part[1:] for part in hashes]


def _words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The cells as text, each by its own value and type alone, whatever else is in the block."""
    if not pa.types.is_binary(column.type):  # binary casts only where all of it is UTF-8
        try:
            return pc.cast(column, pa.string())
        except pa.ArrowNotImplementedError:  # lists, structs
            pass
    words = [None if v is None else json.dumps(v, default=str) for v in column.to_pylist()]
    return pa.chunked_array([words], pa.string())
