"""The stages as one flow: what leaves the first task, what a retry does, two windows at once."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.encode.embedded import Embedded
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import Pool, PoolSettings, configure_data, size_pool
from stella_ray.pipeline.corpus import DatasetCorpus, ShardedCorpus, find_shards
from stella_ray.pipeline.embed import receipts
from stella_ray.pipeline.encode import EncodeBlocks, with_vectors
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.ledger import Ledger
from stella_ray.pipeline.prepare import prepare_block
from stella_ray.pipeline.write import write
from stella_ray.receipts import RECEIPT
from stella_ray.rows import (
    FRESH,
    REFRESHED,
    REJECTED,
    REPEATED,
    SUMMARY,
    UNCHANGED,
    key_array,
    row_keys,
    source,
    table_schema,
)
from stella_ray.table.keys import KnownKeys
from stella_ray.table.opening import open_for_run
from stella_ray.table.vectors import VectorTable
from tests.jobs.conftest import documents
from tests.pipeline.conftest import prepare

YEAR = pa.field("year", pa.int64())
DIM = 8


@pytest.fixture(scope="module")
def how(tiny_encoder: Path) -> Preparation:
    spec = find_encoder(EncoderSettings(path=str(tiny_encoder), max_tokens=16))
    return Preparation(kept=(YEAR,), store_text=True, spec=spec, digest="digest")


def block_of(rows: list[tuple[str | None, str | None, int]]) -> pa.Table:
    blank = {"shard": 0, "shard_bytes": 3.0, "read_seconds": 0.5}
    cells = [
        {**blank, "row": i, "doc_id": doc, "text": text, "year": year}
        for i, (doc, text, year) in enumerate(rows)
    ]
    return pa.Table.from_pylist(cells, source([YEAR]))


def known_of(block: pa.Table, how: Preparation) -> KnownKeys:
    keys = key_array(pa.table({"row_key": row_keys(block, ["year"], how.digest)}))
    return KnownKeys(1, np.sort(keys), np.arange(len(keys), dtype=np.uint64))


# ---------------------------------------------------------------- what leaves the first task

some_rows = st.lists(
    st.tuples(
        st.sampled_from(["1", "2", "3", "4", None]),
        st.sampled_from(["一", "二三", "四" * 30, "", None]),
        st.integers(0, 1),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(rows=some_rows, there=some_rows, window=st.integers(1, 9), long=st.booleans())
def test_the_sums_are_those_of_a_plain_count_and_only_rows_that_move_leave(
    how: Preparation, rows: list[Any], there: list[Any], window: int, long: bool
) -> None:
    if long:
        how = replace(how, chunk_overlap=2)
    sound = {row for row in there if row[0] and row[1]}
    known = known_of(block_of(sorted(sound)), how)
    block = block_of(rows)
    plain = prepare(block, how, known)
    found = list(prepare_block(block, how, known, window))
    assert all(part.schema == plain.schema for part in found)
    summed = [row for part in found for row in part.to_pylist() if row["fate"] == SUMMARY]
    moved = [row for part in found for row in part.to_pylist() if row["fate"] != SUMMARY]
    assert {row["fate"] for row in moved} <= {FRESH, REFRESHED, REJECTED}
    assert all(len({(r["row"]) for r in part.to_pylist()}) <= window for part in found)

    expected = [r for r in plain.to_pylist() if r["fate"] not in (UNCHANGED, REPEATED)]
    for row in moved + expected:
        del row["read_seconds"], row["prepared_at"]
    assert moved == expected
    fates = plain["fate"].to_pylist()
    assert len(summed) <= 1
    stayed = summed[0]["stayed"] if summed else {"rows": 0, "repeated": 0, "seen": b""}
    assert stayed["rows"] == fates.count(UNCHANGED) + fates.count(REPEATED)
    assert stayed["repeated"] == fates.count(REPEATED)
    places = [r["known_at"] for r in plain.to_pylist() if r["fate"] == UNCHANGED]
    assert np.frombuffer(stayed["seen"], np.int64).tolist() == places
    total = sum(row["shard_bytes"] for row in moved + summed)
    assert total == pytest.approx(3.0 * len(rows))
    assert sum(sum(part["read_seconds"].to_pylist()) for part in found) >= 0.5 * len(rows)


def test_a_receipt_of_nothing_but_sums_has_no_fragment(how: Preparation, tmp_path: Path) -> None:
    block = block_of([("1", "一", 0), ("2", "二", 0), ("1", "一", 0), ("3", "三", 0)])
    known = known_of(block.take([0, 1, 3]), how)
    parts = [*prepare_block(block, how, known, 4), *prepare_block(block, how, known, 4)]
    (told,) = write(
        with_vectors(pa.concat_tables(parts), np.empty(0, np.int64)),
        str(tmp_path / "none.lance"),
        table_schema([YEAR], True, DIM, pa.float32()),
        "run",
        known,
    ).to_pylist()
    assert (told["rows_read"], told["repeated_rows"]) == (8, 2)
    assert sorted(np.frombuffer(told["seen"], np.int64).tolist()) == [0, 0, 1, 1, 2, 2]
    assert (told["fragments"], told["rejects"], told["bad_shards"]) == ([], [], [])
    assert (told["windows"], told["write_queued"], sum(told["lengths"])) == ([], None, 0)
    assert told["shard_bytes"] == pytest.approx(24)
    ledger = Ledger(known)
    ledger.add(pa.Table.from_pylist([told], RECEIPT))
    assert (ledger.unchanged, ledger.repeated, ledger.counts.rows_read) == (3, 5, 8)


# ---------------------------------------------------------------- on Ray


class Meaningful:
    """An encoder that is a device of its own: slow, and each vector says which tokens it is of."""

    def __init__(self, home: Path, seconds: float, dies: bool) -> None:
        self.home, self.seconds, self.dies = home, seconds, dies
        self.device = threading.Lock()

    def embed_tokens(self, rows: Ragged) -> Embedded:
        with (self.home / "windows").open("a") as log:
            log.write(f"{rows.values[:8].tolist()}\n")
        with self.device:
            began = time.monotonic()
            time.sleep(self.seconds)
        if self.dies and not (self.home / "died").exists():
            (self.home / "died").touch()
            os._exit(1)
        time.sleep(self.seconds)  # what comes behind the device
        with (self.home / "spans").open("a") as log:
            log.write(json.dumps([began, time.monotonic()]) + "\n")
        lengths = rows.lengths.astype(np.int32)
        spent = np.full(len(lengths), self.seconds / len(lengths), np.float32)
        return Embedded(self.reference(rows), lengths, spent, {})

    def reference(self, rows: Ragged) -> np.ndarray:
        parts = np.split(rows.values, rows.offsets[1:-1])
        return np.stack([vector_of(part) for part in parts])


def vector_of(ids: np.ndarray) -> np.ndarray:
    vector = np.random.default_rng(ids.astype(np.int64)).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def opened(home: Path, seconds: float, dies: bool, *_: Any) -> Any:
    return Meaningful(home, seconds, dies)


@pytest.fixture
def table(tmp_path: Path) -> VectorTable:
    schema = table_schema([], True, DIM, pa.float32())
    uri = str(tmp_path / "docs.lance")
    return open_for_run(uri, None, schema, {"name": "none", "digest": "digest"}, rebuild=False)


def flow(
    corpus: Any, table: VectorTable, how: Preparation, home: Path, seconds: float, dies: bool
) -> tuple[Ledger, list[dict[str, Any]], Pool]:
    """Run a corpus into the table; the books, the receipts and the pool."""
    pool = replace(size_pool(PoolSettings(window_rows=4)), windows_at_once=2, block_bytes=1_000)
    configure_data(pool, ray.data.DataContext.get_current())
    ledger, told = Ledger(table.known()), list[dict[str, Any]]()
    target = {
        "uri": table.uri,
        "schema": table.dataset.schema.remove_metadata(),
        "run_id": "run",
        "known": ray.put(ledger.known),
    }
    encoder = EncoderSettings(path=how.spec.folder)
    plain = replace(how, kept=())
    for receipt in receipts(
        corpus, plain, encoder, pool, target, partial(opened, home, seconds, dies)
    ):
        ledger.add(receipt)
        told += receipt.to_pylist()
    table.commit(ledger.take_pending())
    return ledger, told, pool


def shards(home: Path, write_jsonl: Any, count: int, each: int) -> ShardedCorpus:
    rows = [{k: row[k] for k in ("id", "text")} for row in documents(count * each)]
    for i in range(count):
        write_jsonl(home / f"corpus/{i}.jsonl", rows[i * each :][:each])
    return ShardedCorpus(find_shards([str(home / "corpus")]), CorpusColumns(), [])


def assert_whole(table: VectorTable, how: Preparation, count: int) -> None:
    """Every document is there once, with the vector of its own text."""
    rows = table.dataset.to_table().to_pylist()
    assert sorted(row["doc_id"] for row in rows) == sorted(f"d{i}" for i in range(count))
    tokenizer = TextTokenizer(how.spec.folder, 16)
    for row in rows:
        ids = tokenizer([row["text"]], how.spec.prefix_text(how.spec.prefix)).values
        np.testing.assert_allclose(row["vector"], vector_of(ids), atol=1e-6)


@pytest.mark.ray
def test_two_windows_are_in_an_encoder_s_hands_and_their_vectors_aren_t_mixed(
    tmp_path: Path, local_ray: None, table: VectorTable, how: Preparation, write_jsonl: Any
) -> None:
    corpus = shards(tmp_path, write_jsonl, 2, 40)
    _, told, _ = flow(corpus, table, how, tmp_path, 0.3, dies=False)
    assert_whole(table, how, 80)
    lines = (tmp_path / "spans").read_text().splitlines()
    spans = sorted(json.loads(line) for line in lines)  # from the device's start to the vectors
    assert len(spans) == sum(len(one["windows"]) for one in told) > 4
    # One after another, each would end before the next has the device.
    overlapping = [a for a, b in itertools.pairwise(spans) if b[0] < a[1]]
    assert len(overlapping) >= len(spans) // 2


@pytest.mark.ray
def test_a_killed_encoder_s_windows_are_tried_once_more_each_and_no_row_doubles(
    tmp_path: Path, local_ray: None, table: VectorTable, how: Preparation, write_jsonl: Any
) -> None:
    corpus = shards(tmp_path, write_jsonl, 2, 40)
    ledger, _, pool = flow(corpus, table, how, tmp_path, 0.1, dies=True)
    assert_whole(table, how, 80)
    assert ledger.counts.rows_read == 80
    tries = Counter((tmp_path / "windows").read_text().splitlines())
    assert set(tries.values()) == {1, 2}
    assert list(tries.values()).count(2) <= pool.windows_at_once


@pytest.mark.ray
def test_a_night_without_changes_is_one_block_a_reading_task_and_loads_no_encoder(
    tmp_path: Path, local_ray: None, table: VectorTable, how: Preparation, write_jsonl: Any
) -> None:
    corpus = shards(tmp_path, write_jsonl, 3, 40)
    flow(corpus, table, how, tmp_path, 0.0, dies=False)
    windows = (tmp_path / "windows").read_text()
    ledger, told, _ = flow(corpus, table, how, tmp_path, 0.0, dies=True)
    assert (ledger.unchanged, ledger.counts.rows_read, ledger.repeated) == (120, 120, 0)
    assert len(told) <= 3
    assert (tmp_path / "windows").read_text() == windows
    assert ledger.counts.shard_bytes == pytest.approx(corpus.bytes)


def die_once(block: pa.Table, flag: Path) -> Iterator[pa.Table]:
    """Give half of the rows, then die; the second time give all."""
    yield block.slice(0, len(block) // 2)
    if not flag.exists():
        time.sleep(1)  # until what was given is on its way
        flag.touch()
        os._exit(1)
    yield block.slice(len(block) // 2)


@pytest.mark.ray
def test_a_reading_task_that_dies_and_is_tried_again_counts_once(
    tmp_path: Path, local_ray: None, table: VectorTable, how: Preparation
) -> None:
    rows = [{k: row[k] for k in ("id", "text")} for row in documents(200)]
    for night in range(2):
        flag = tmp_path / f"flag{night}"
        dataset = ray.data.from_items(rows, override_num_blocks=2)
        dying = dataset.map_batches(
            die_once,
            fn_kwargs={"flag": flag},
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=0.5,
        )
        corpus = DatasetCorpus(dying, CorpusColumns(), [])
        ledger, _, _ = flow(corpus, table, how, tmp_path, 0.0, dies=False)
        assert flag.exists()
        assert ledger.counts.rows_read == 200
        assert ledger.repeated == 0
        assert ledger.unchanged == (200 if night else 0)
    assert_whole(table, how, 200)


def test_the_encoder_loads_with_the_first_row_that_needs_it(how: Preparation) -> None:
    asked: list[str] = []

    def load(settings: EncoderSettings, _: str) -> Any:
        asked.append(settings.path)
        return Meaningful(Path(), 0.0, dies=False)

    there = EncoderSettings(path="somewhere")
    actor = EncodeBlocks(there, "digest", 1, at_once=False, opened=load)
    block = block_of([("1", "一", 0)])
    known = known_of(block, how)
    actor(pa.concat_tables(prepare_block(block, how, known, 4)))
    assert asked == []
    assert EncodeBlocks(there, "digest", 1, opened=load).loading.result()
    assert asked == ["somewhere"]
