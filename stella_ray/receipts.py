"""What the driver sees of a written block: counts, keys and names, never texts or vectors."""

from __future__ import annotations

import pyarrow as pa

from stella_ray.rows import KEY_BYTES, ORIGIN, WINDOW

SAMPLE = pa.struct(
    [pa.field("row_key", pa.binary(KEY_BYTES)), pa.field("vector", pa.list_(pa.float32()))]
)
"""A row that was encoded a second time, alone and in float32, to check the stored vector by."""

REJECT = pa.struct([*ORIGIN, pa.field("doc_id", pa.string()), pa.field("reason", pa.string())])

LENGTHS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Most tokens of a row in each bin of a run's histogram of lengths."""

RECEIPT = pa.schema(
    [
        pa.field("fragments", pa.list_(pa.string())),
        pa.field("rows_read", pa.int64()),
        pa.field("truncated", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("padded_tokens", pa.int64()),
        pa.field("shard_bytes", pa.float64()),
        pa.field("read_seconds", pa.float64()),
        pa.field("encode_seconds", pa.float64()),
        pa.field("write_seconds", pa.float64()),
        pa.field("windows", pa.list_(WINDOW)),
        pa.field("write_queued", pa.float64()),
        pa.field("written_at", pa.float64()),
        pa.field("lengths", pa.list_(pa.int32())),
        pa.field("repeated_rows", pa.int64()),
        pa.field("seen", pa.binary()),
        pa.field("fresh_keys", pa.binary()),
        pa.field("refreshed_keys", pa.binary()),
        pa.field("broken", pa.binary()),
        pa.field("rejects", pa.list_(REJECT)),
        pa.field("bad_shards", pa.list_(REJECT)),
        pa.field("samples", pa.list_(SAMPLE)),
    ]
)
"""`seen`: int64 positions among the known keys; `*_keys`: 16 bytes a written row; `broken`: the
keys of chunks that were rejected, whose documents must go whole; `rows_read` counts documents;
`windows`: what the encoders did for these rows; `write_queued`: seconds that their vectors waited
to be written, null where there are none; `written_at`: when that was done, in seconds since 1970;
`lengths`: written rows by their tokens, a count for each of `LENGTHS` and one for longer ones."""
