"""The books of a run add up, whatever the corpus holds: against a model in plain Python."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.pipeline.judge import Preparation, rows_of_documents
from stella_ray.pipeline.ledger import Ledger, document_parts
from stella_ray.receipts import RECEIPT
from stella_ray.rows import (
    FRESH,
    KEY_BYTES,
    REFRESHED,
    REJECTED,
    REPEATED,
    UNCHANGED,
    key_array,
    row_keys,
    source,
)
from stella_ray.table.keys import KnownKeys
from tests.pipeline.conftest import prepare

Row = tuple[str, str | None, int]
"""Document, text (None: to be rejected), kept column."""

YEAR = pa.field("year", pa.int64())


@pytest.fixture(scope="module")
def how(tiny_encoder: Path) -> Preparation:
    spec = find_encoder(EncoderSettings(path=str(tiny_encoder), max_tokens=16))
    return Preparation(kept=(YEAR,), store_text=False, spec=spec, digest="digest")


def block_of(rows: list[Row], start: int = 0) -> pa.Table:
    schema = source([YEAR])
    blank = {**dict.fromkeys(schema.names), "shard": 0, "shard_bytes": 2.0, "read_seconds": 0.5}
    cells = [
        {**blank, "row": start + i, "doc_id": doc, "text": text, "year": year}
        for i, (doc, text, year) in enumerate(rows)
    ]
    return pa.Table.from_pylist(cells, schema)


def keys_of(rows: list[Row], how: Preparation) -> np.ndarray:
    keys = row_keys(block_of(rows), how.kept_names, how.digest)
    return key_array(pa.table({"row_key": keys}))


def known_of(keys: np.ndarray) -> KnownKeys:
    order = np.argsort(keys, kind="stable")
    return KnownKeys(1, keys[order], np.arange(len(keys), dtype=np.uint64)[order])


def receipt(block: pa.Table) -> pa.Table:
    """What `embed.write` says of a prepared block."""
    fates = np.asarray(block["fate"].to_pylist(), object)
    keys = key_array(block)
    zeros = {field.name: 0 for field in RECEIPT if not pa.types.is_nested(field.type)}
    written = np.isin(fates, (FRESH, REFRESHED)).any()
    one = {
        **zeros,
        "fragments": ["{}"] if written else [],
        "rows_read": len(block),
        "shard_bytes": 2.0 * len(block),
        "repeated_rows": int((fates == REPEATED).sum()),
        "seen": block["known_at"].to_numpy()[fates == UNCHANGED].tobytes(),
        "fresh_keys": keys[fates == FRESH].tobytes(),
        "refreshed_keys": keys[fates == REFRESHED].tobytes(),
        "broken": b"",
        "bad_shards": [],
        "samples": [],
        "rejects": [{"shard": 0, "row": 0, "doc_id": "", "reason": ""}] * int(
            (fates == REJECTED).sum()
        ),
    }  # fmt: skip
    return pa.Table.from_pylist([one], RECEIPT)


@dataclass
class Night:
    """A run over blocks of rows, up to its last commit; `written` is what a table would get."""

    ledger: Ledger
    written: np.ndarray

    @classmethod
    def of(cls, blocks: list[list[Row]], there: list[Row], how: Preparation) -> Night:
        known = known_of(keys_of(there, how))
        ledger = Ledger(known)
        corpus, start = [], 0
        for rows in blocks:
            corpus.append(block_of(rows, start))
            start += len(rows)
        for block in corpus:
            ledger.add(receipt(prepare(block, how, known)))
        night = cls(ledger, ledger.written())
        documents = ledger.doubled_documents()
        if len(documents):  # as in run.py
            first: dict[str, bytes] = {}
            losing = []
            for block in corpus:
                for row in rows_of_documents(block, how, documents).to_pylist():
                    if first.setdefault(row["doc_id"], row["row_key"]) != row["row_key"]:
                        losing.append(row["row_key"])
            ledger.strike(losing)
        return night

    @property
    def counts(self) -> dict[str, int]:
        embedded, refreshed = self.ledger.embedded_and_refreshed()
        return {
            "embedded": embedded, "refreshed": refreshed, "unchanged": self.ledger.unchanged,
            "repeated": self.ledger.repeated, "rejected": self.ledger.counts.rejected,
        }  # fmt: skip


def model(blocks: list[list[Row]], there: list[Row]) -> tuple[Counter[str], set[Row]]:
    """The fate of every row and the rows that the table ends with, in plain words."""
    winners: dict[str, Row] = {}
    counts: Counter[str] = Counter()
    for row in (row for rows in blocks for row in rows):
        doc, text, _ = row
        if text is None:
            counts["rejected"] += 1
        elif doc not in winners:
            winners[doc] = row
            same_text = any(row[:2] == other[:2] for other in there)
            fate = "unchanged" if row in there else "refreshed" if same_text else "embedded"
            counts[fate] += 1
        else:
            counts["repeated" if row == winners[doc] else "rejected"] += 1
    return counts, set(winners.values())


some_rows = st.tuples(
    st.sampled_from("abcd"), st.sampled_from(["一", "二", None]), st.sampled_from([1, 2])
)
sound = some_rows.filter(lambda row: row[1] is not None)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.lists(some_rows, max_size=5), max_size=4),
    st.lists(sound, max_size=6),
    st.booleans(),
)
def test_every_row_is_counted_once_and_the_table_ends_as_it_must(
    how: Preparation, blocks: list[list[Row]], there: list[Row], keep: bool
) -> None:
    """`there` may hold rows twice, and a document with several texts: what a dead run left."""
    if not keep:  # keys of tables without kept columns end in zeros
        how = dataclasses.replace(how, kept=())
        blocks = [[(doc, text, 0) for doc, text, _ in rows] for rows in blocks]
        there = [(doc, text, 0) for doc, text, _ in there]
    night = Night.of(blocks, there, how)
    ledger = night.ledger
    expected_counts, end = model(blocks, there)

    assert {name: n for name, n in night.counts.items() if n} == dict(expected_counts)
    assert sum(night.counts.values()) == ledger.counts.rows_read == sum(map(len, blocks))
    assert ledger.counts.shard_bytes == 2 * ledger.counts.rows_read

    expected = np.unique(keys_of(sorted(end), how))
    assert (ledger.expected() == expected).all()

    before = {doc for doc, _, _ in there}
    gone, all_before = ledger.vanished_documents()
    assert (gone, all_before) == (len(before - {doc for doc, _, _ in end}), len(before))

    # The last commit, from a fresh look at the table.
    now = known_of(np.concatenate([keys_of(there, how), night.written]))
    left = now.keys[~np.isin(now.addresses, ledger.doomed(now))]
    assert left.tolist() == expected.tolist()
    # In one version: everything pending, and only rows known before deleted.
    if ledger.one_commit_is_enough():
        old = ledger.known.keys[~np.isin(ledger.known.addresses, ledger.doomed(ledger.known))]
        assert np.sort(np.concatenate([old, night.written])).tolist() == expected.tolist()


# ---------------------------------------------------------------- one case at a time

A, A2, A_YEAR, B = ("a", "一", 1), ("a", "二", 1), ("a", "一", 2), ("b", "一", 1)


@pytest.mark.parametrize(
    ("blocks", "there", "counts"),
    [
        ([[A, A, B]], [], {"embedded": 2, "repeated": 1}),
        ([[A], [B, A]], [], {"embedded": 2, "repeated": 1}),
        ([[A, A], [A]], [A], {"unchanged": 1, "repeated": 2}),
        ([[A], [A]], [A_YEAR], {"refreshed": 1, "repeated": 1}),
        ([[A, A2]], [], {"embedded": 1, "rejected": 1}),
        ([[A2], [A], [A2], [A]], [A], {"embedded": 1, "rejected": 2, "repeated": 1}),
        ([[A, A_YEAR]], [A], {"unchanged": 1, "rejected": 1}),
        ([[A_YEAR, A]], [A], {"refreshed": 1, "rejected": 1}),
        ([[A]], [A, A], {"unchanged": 1}),
        ([[A2]], [A, A_YEAR], {"embedded": 1}),
        ([[("a", None, 1), ("a", None, 1)]], [A], {"rejected": 2}),
    ],
)
def test_fates_are_counted(
    how: Preparation, blocks: list[list[Row]], there: list[Row], counts: dict[str, int]
) -> None:
    night = Night.of(blocks, there, how)
    assert {name: n for name, n in night.counts.items() if n} == counts


def test_a_changed_document_has_not_vanished(how: Preparation) -> None:
    assert Night.of([[A2]], [A, B], how).ledger.vanished_documents() == (1, 2)
    assert Night.of([[A_YEAR], [B]], [A, B], how).ledger.vanished_documents() == (0, 2)
    assert Night.of([], [A, B], how).ledger.vanished_documents() == (2, 2)
    assert Night.of([[A]], [], how).ledger.vanished_documents() == (0, 0)


def test_a_document_whose_rows_are_all_rejected_has_vanished(how: Preparation) -> None:
    assert Night.of([[("a", None, 1), B]], [A, B], how).ledger.vanished_documents() == (1, 2)


def test_what_is_pending_is_named_until_it_is_committed(how: Preparation) -> None:
    ledger = Night.of([[A, B], [B, A2]], [], how).ledger
    assert (len(ledger.pending), ledger.pending_rows) == (2, 4)
    assert ledger.take_pending()
    assert (ledger.pending, ledger.pending_rows) == ([], 0)
    assert len(ledger.written()) == 4


def test_one_commit_is_enough_unless_written_rows_must_go(how: Preparation) -> None:
    assert Night.of([[A], [B]], [A2], how).ledger.one_commit_is_enough()
    assert not Night.of([[A], [A]], [], how).ledger.one_commit_is_enough()
    assert not Night.of([[A], [A2]], [], how).ledger.one_commit_is_enough()


def test_document_parts_are_the_first_bytes_of_keys() -> None:
    raw: Any = [bytes(16), b"\x01" + bytes(15), bytes(6) + b"\x02" + bytes(9), b"\xff" * 16]
    parts = document_parts(np.array(raw, f"S{KEY_BYTES}"))
    assert parts.dtype == np.dtype("S7")
    assert parts.tobytes() == b"".join(key[:7] for key in raw)
    assert document_parts(np.empty(0, f"S{KEY_BYTES}")).tolist() == []
