"""Looking up documents of one row, of many rows, and of too few rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.pipeline.ledger import first_rows, text_parts
from stella_ray.rows import DOC_BYTES, KEPT_BYTES, KEY_BYTES, TEXT_BYTES, chunk_keys
from stella_ray.table.keys import KnownKeys

SAME_TEXT = DOC_BYTES + TEXT_BYTES


def key(document: int, text: int = 0, kept: int = 0) -> np.ndarray:
    """A document's own key, of numbers small enough to collide."""
    raw = document.to_bytes(DOC_BYTES, "big") + text.to_bytes(TEXT_BYTES, "big")
    return np.array([raw + kept.to_bytes(KEPT_BYTES, "big")], f"S{KEY_BYTES}")


def rows_of(first: np.ndarray, count: int) -> np.ndarray:
    return chunk_keys(np.repeat(first, count), np.arange(count))


def table(documents: dict[bytes, tuple[np.ndarray, int]]) -> KnownKeys:
    """The keys of a table of these documents, by rows that are there and chunks that should be."""
    keys = np.concatenate([rows for rows, _ in documents.values()])
    chunks = np.concatenate([np.full(len(rows), n, np.int32) for rows, n in documents.values()])
    order = np.argsort(keys)
    return KnownKeys(1, keys[order], np.arange(len(keys), dtype=np.uint64), chunks[order])


def test_chunk_numbers_carry_from_byte_to_byte() -> None:
    first = key(5, kept=0x7FFF_FFFE)
    assert rows_of(first, 3).tolist()[2] == key(5, kept=0x8000_0000).tolist()[0]
    far = chunk_keys(key(1, kept=255), np.array([1]))
    assert far.tolist() == key(1, kept=256).tolist()


def test_a_document_is_found_with_all_of_its_rows() -> None:
    there = table({b"a": (rows_of(key(1), 4), 4), b"b": (rows_of(key(2, 9, 7), 2), 2)})
    at, count = there.find_documents(np.concatenate([key(2, 9, 7), key(1), key(3)]))
    assert (at.tolist(), count.tolist()) == ([4, 0, -1], [2, 4, 0])


def test_the_same_text_with_other_kept_columns_is_found_by_its_first_bytes() -> None:
    there = table({b"a": (rows_of(key(1, 5, 1_000), 3), 3)})
    at, count = there.find_documents(key(1, 5, 77), SAME_TEXT)
    assert (at.tolist(), count.tolist()) == ([0], [3])
    assert there.find_documents(key(1, 5, 77))[0].tolist() == [-1]


@given(st.integers(1, 5), st.sets(st.integers(0, 4)))
def test_a_document_without_one_of_its_chunks_is_none(chunks: int, missing: set[int]) -> None:
    whole = rows_of(key(7, 3, 50), chunks)
    kept = np.array([i for i in range(chunks) if i not in missing], int)
    there = table({b"x": (whole[kept], chunks), b"y": (rows_of(key(8), 2), 2)})
    for asked, prefix in ((key(7, 3, 50), KEY_BYTES), (key(7, 3, 9), SAME_TEXT)):
        at, count = there.find_documents(asked, prefix)
        expected = ([0], [chunks]) if len(kept) == chunks else ([-1], [0])
        assert (at.tolist(), count.tolist()) == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), unique_by=lambda d: d[0]))
def test_first_rows_are_as_many_as_documents(documents: list[tuple[int, int]]) -> None:
    rows = [rows_of(key(number), count) for number, count in documents]
    keys = np.sort(np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *rows]))
    assert first_rows(keys).sum() == len(documents)
    assert len(np.unique(text_parts(keys))) == len(documents)
