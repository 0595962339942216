"""The books of a run over a table of chunks: the same model, with documents of many rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.pipeline.judge import Preparation, rows_of_documents
from stella_ray.pipeline.ledger import Ledger
from stella_ray.pipeline.write import ranges
from stella_ray.receipts import RECEIPT
from stella_ray.rows import (
    FRESH,
    KEY_BYTES,
    REFRESHED,
    REJECTED,
    REPEATED,
    UNCHANGED,
    chunk_keys,
    key_array,
)
from stella_ray.table.keys import KnownKeys
from tests.conftest import HAN
from tests.pipeline.conftest import prepare
from tests.pipeline.test_ledger import Row, block_of, model, some_rows, sound

TEXTS = {"一": "一", "二": "".join(HAN[i * 7 % 900] for i in range(61)), None: None}
"""A document of one row, and one of several."""

EMPTY = KnownKeys(1, np.empty(0, f"S{KEY_BYTES}"), np.empty(0, np.uint64), np.empty(0, np.int32))


@pytest.fixture(scope="module")
def how(tiny_encoder: Path) -> Preparation:
    spec = find_encoder(EncoderSettings(path=str(tiny_encoder), max_tokens=16))
    year = pa.field("year", pa.int64())
    return Preparation(kept=(year,), store_text=False, spec=spec, digest="digest", chunk_overlap=2)


def with_texts(rows: list[Row]) -> list[Row]:
    return [(doc, TEXTS[text], year) for doc, text, year in rows]


def rows_in_table(rows: list[Row], how: Preparation) -> tuple[np.ndarray, np.ndarray]:
    """Keys and chunk counts of the rows that these documents are, each as often as it is given."""
    blocks = [prepare(block_of([row]), how, EMPTY) for row in rows]
    keys = [key_array(block) for block in blocks]
    counts = [block["chunks"].to_numpy() for block in blocks]
    return (
        np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *keys]),
        np.concatenate([np.empty(0, np.int32), *counts]),
    )


def known_of(keys: np.ndarray, chunks: np.ndarray) -> KnownKeys:
    order = np.argsort(keys, kind="stable")
    addresses = np.arange(len(keys), dtype=np.uint64)
    return KnownKeys(1, keys[order], addresses[order], chunks[order])


def receipt(block: pa.Table, known: KnownKeys) -> pa.Table:
    """What `embed.write` says of a prepared block."""
    fates = np.asarray(block["fate"].to_pylist(), object)
    at, counts = block["known_at"].to_numpy(), block["known_rows"].to_numpy()
    keys, seen, again = key_array(block), fates == UNCHANGED, fates == REFRESHED
    inside = ranges(np.zeros(again.sum(), np.int64), counts[again])
    zeros = {field.name: 0 for field in RECEIPT if not pa.types.is_nested(field.type)}
    one = {
        **zeros, "fragments": [], "broken": b"", "bad_shards": [], "samples": [],
        "rows_read": int((block["chunk"].to_numpy() == 0).sum()),
        "repeated_rows": int((fates == REPEATED).sum()),
        "seen": ranges(at[seen], counts[seen]).tobytes(),
        "fresh_keys": keys[fates == FRESH].tobytes(),
        "refreshed_keys": chunk_keys(np.repeat(keys[again], counts[again]), inside).tobytes(),
        "rejects": [{"shard": 0, "row": 0, "doc_id": "", "reason": ""}] * int(
            (fates == REJECTED).sum()
        ),
    }  # fmt: skip
    return pa.Table.from_pylist([one], RECEIPT)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(some_rows, max_size=5), max_size=4),
    st.lists(sound, max_size=6),
    st.sets(st.integers(0, 20)),
)
@example([[("a", "二", 2)]], [("a", "二", 2)] * 2, {0, 1, 2, 3, 4, 8})  # one lost, another twice
def test_documents_are_counted_once_and_the_table_ends_whole(
    how: Preparation, blocks: list[list[Row]], there: list[Row], lost: set[int]
) -> None:
    """`lost` rows of the table are those that a killed run didn't come to commit."""
    keys, chunks = rows_in_table(with_texts(there), how)
    left = np.array([i not in lost for i in range(len(keys))], bool)
    known = known_of(keys[left], chunks[left])
    ledger = Ledger(known)
    corpus = [block_of(with_texts(rows)) for rows in blocks]
    for block in corpus:
        ledger.add(receipt(prepare(block, how, known), known))
    documents = ledger.doubled_documents()
    first: dict[str, bytes] = {}
    losing = [
        row["row_key"]
        for block in corpus
        for row in rows_of_documents(block, how, documents).to_pylist()
        if first.setdefault(row["doc_id"], row["row_key"]) != row["row_key"]
    ]
    ledger.strike(losing)

    counts, end = model(blocks, there)
    expected = np.unique(rows_in_table(with_texts(sorted(end)), how)[0])
    assert ledger.expected().tolist() == expected.tolist()
    assert ledger.documents() == len(end)
    embedded, refreshed = ledger.embedded_and_refreshed()
    stay = embedded + refreshed + ledger.unchanged
    assert stay == len(end)
    assert ledger.repeated == counts["repeated"]
    assert ledger.counts.rejected == counts["rejected"]
    assert ledger.counts.rows_read == stay + counts["repeated"] + counts["rejected"]
    if not lost and len(set(there)) == len(there):
        assert embedded == counts["embedded"]

    # The last commit, from a fresh look at the table.
    written = ledger.written()
    now = known_of(
        np.concatenate([known.keys, written]), np.zeros(len(known.keys) + len(written), np.int32)
    )
    kept = now.keys[~np.isin(now.addresses, ledger.doomed(now))]
    assert kept.tolist() == expected.tolist()
    if ledger.one_commit_is_enough():
        old = known.keys[~np.isin(known.addresses, ledger.doomed(known))]
        assert np.sort(np.concatenate([old, written])).tolist() == expected.tolist()


def test_a_document_with_a_rejected_chunk_goes_whole_and_counts_once(how: Preparation) -> None:
    rows = with_texts([("a", "二", 1), ("b", "二", 1), ("c", "一", 1)])
    block = prepare(block_of(rows), how, EMPTY)
    keys, doc = key_array(block), np.asarray(block["doc_id"].to_pylist(), object)
    assert (doc == "b").sum() > 3
    broken = np.flatnonzero(doc == "b")[1:3]
    fine = np.setdiff1d(np.arange(len(block)), broken)
    rejects = [{"shard": 0, "row": 1, "doc_id": "b", "reason": "poison"}] * 2
    one = receipt(block, EMPTY).to_pylist()[0]
    one |= {"fresh_keys": keys[fine].tobytes(), "broken": keys[broken].tobytes()}
    ledger = Ledger(dataclasses.replace(EMPTY))
    ledger.add(pa.Table.from_pylist([{**one, "rejects": rejects}], RECEIPT))
    assert ledger.expected().tolist() == np.sort(keys[doc != "b"]).tolist()
    assert ledger.embedded_and_refreshed() == (2, 0)
    assert (ledger.counts.rejected, ledger.repeated, ledger.counts.rows_read) == (1, 0, 3)
    assert not ledger.one_commit_is_enough()
    now = known_of(keys[fine], np.zeros(len(fine), np.int32))
    assert len(ledger.doomed(now)) == (doc == "b").sum() - 2
