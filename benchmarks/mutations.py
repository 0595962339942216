"""Bad inputs for benchmarks.fuzz: real rows and files, changed as disks, exports and enemies do."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Mutation = Callable[[random.Random, bytes], bytes]

TOKENS = [
    b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xe4\xb8",
    b"\\ud800", b"\\udfff\\ud800", b"\\u0000", b"\\x", b"\r\n", b"\r", b"\n", b"\x1a", b"\x1b[2J",
    b"\x0b", b"\x0c", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xae", b'"', b'""', b"'", b"\\", b",",
    b";", b"\t", b"\xf4\x90\x80\x80",
    b"1e999", b"-1e999", b"1e-999", b"9" * 25, b"-" + b"9" * 400, b"9" * 5_000, b"0x10", b"1_000",
    b"NaN", b"Infinity", b"-0", b"true", b"null", b"[]", b"{}", b"[", b"]", b"{", b"}", b":",
    b'{"id": ', b'"text": 5, ', b'"id": null, ', b'"__proto__": 1, ', b"<script>", b"' OR 1=1 --",
]  # fmt: skip
"""What parsers stumble over, as bytes to put anywhere."""

VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e300, float("nan"),
    float("inf"), "", " ", "\u3000", "\x00", "\ud800", "a\ud800b", "\ufeff", "\n", "\r\n", '"',
    "中" * 500, "x" * 20_000,
    [], [[]], {}, {"a": None}, ["a", 1, None], {"id": {"id": {}}}, "9" * 400, "2024-13-45", "1e999",
]  # fmt: skip
"""In the place of a value: other types, and texts that are none."""


def nested(dice: random.Random) -> bytes:
    """Brackets in brackets; parsers end at 1,000 or so."""
    depth = dice.choice([5, 200, 990, 1_010, 1_100, 5_000, 5_000, 20_000])
    begin, end = dice.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"id":[', b"]}")])
    return begin * depth + b"1" + end * dice.choice([depth, 0, depth // 2])


def flip(dice: random.Random, data: bytes) -> bytes:
    """Some bits."""
    raw = bytearray(data or b"\0")
    for _ in range(dice.choice([1, 1, 1, 3, 20])):
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    return bytes(raw)


def overwrite(dice: random.Random, data: bytes) -> bytes:
    """A stretch of other bytes: noise, zeros or ones."""
    at, size = dice.randrange(len(data) + 1), dice.choice([1, 2, 4, 16, 200])
    noise = dice.choice([dice.randbytes(size), bytes(size), b"\xff" * size])
    return data[:at] + noise + data[at + size :]


def cut(dice: random.Random, data: bytes) -> bytes:
    """Its beginning, its end, or all but a stretch."""
    a, b = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    return dice.choice([data[:b], data[a:], data[:a] + data[b:]])


def doubled(dice: random.Random, data: bytes) -> bytes:
    """A stretch of it again, somewhere."""
    a, b = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[a:b] + data[at:]


def put(dice: random.Random, data: bytes) -> bytes:
    """Bytes that parsers stumble over."""
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(TOKENS) + data[at:]


def deep(dice: random.Random, data: bytes) -> bytes:
    """Deep nesting in the place of a stretch."""
    a, b = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + nested(dice) + data[b:]


def other_value(dice: random.Random, data: bytes) -> bytes:
    """Of a line of JSON one value, or a name, replaced; another line stays."""
    try:
        item = json.loads(data)
    except (ValueError, RecursionError):
        return put(dice, data)
    if not isinstance(item, dict) or not item:
        return put(dice, data)
    key = dice.choice(list(item))
    if dice.random() < 0.2:
        item[dice.choice(["", "\n", "\ud800", "a" * 3_000, "中", "text"])] = item.pop(key)
    elif dice.random() < 0.1:
        raw = json.dumps(item | {key: "@"}).encode()
        return raw.replace(b'"@"', nested(dice), 1)
    else:
        item[key] = dice.choice(VALUES)
    plain = dice.random() < 0.5
    return json.dumps(item, ensure_ascii=plain).encode(errors="surrogatepass")


ANY: Sequence[Mutation] = (flip, overwrite, cut, doubled, put)
LINE: Sequence[Mutation] = (*ANY, other_value, other_value, other_value, deep)


def mutated(dice: random.Random, data: bytes, ways: Sequence[Mutation]) -> bytes:
    """The bytes after one to four changes."""
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        data = dice.choice(ways)(dice, data)[: 1 << 21]
    return data


def packed(data: bytes, compression: str) -> bytes:
    """Compressed; "" leaves it as it is."""
    if compression == ".gz":
        return gzip.compress(data, 1, mtime=0)
    return pa.compress(data, "zstd", asbytes=True) if compression == ".zst" else data


def bomb(compression: str, mebibytes: int) -> bytes:
    """One line of so many mebibytes between two good ones, a thousandth of that when packed."""
    line = b'{"id": 1, "text": "a"}\n'
    return packed(line + b"[" * (mebibytes << 20) + b"\n" + line, compression)


def parquet_file(dice: random.Random, columns: dict[str, Any]) -> bytes:
    """A small file in one of the many ways of writing them."""
    table = pa.table(columns)
    if dice.random() < 0.3:
        name = dice.choice(table.column_names)
        if pa.types.is_string(table[name].type):
            wide = dice.choice(
                [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
            )
            table = table.set_column(table.column_names.index(name), name, table[name].cast(wide))
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=dice.choice(["none", "snappy", "zstd", "gzip"]),
        use_dictionary=dice.random() < 0.5,
        data_page_version=dice.choice(["1.0", "2.0"]),
        row_group_size=dice.choice([3, 1_000]),
        store_schema=dice.random() < 0.7,
        write_page_checksum=dice.random() < 0.2,
    )  # fmt: skip
    return sink.getvalue()
