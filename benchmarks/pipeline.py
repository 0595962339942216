"""What does everything but the encoder cost, and does it keep a device fed?

    python -m benchmarks.pipeline stages --rows 50000
    python -m benchmarks.pipeline feed --rows 100000 --tokens_per_second 400000
    python -m benchmarks.pipeline feed --rows 200000 --tokens_per_second 0

`stages`: each stage as a plain function on one core, in CPU seconds a million documents. `feed`:
the whole flow on Ray with an encoder that takes a device's time by sleeping, which leaves the
interpreter to others as a GPU does (0: none at all), with one and with two windows in its hands.

Documents have 283 tokens on average: lognormal, median 220 Chinese characters, 0.9, 8 to 1022.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from benchmarks.memory import role
from stella_ray.encode.embedded import Embedded
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import PoolSettings, cluster, configure_data, size_pool
from stella_ray.pipeline.corpus import ROWS_PER_READ, ShardedCorpus, find_shards, read_shards
from stella_ray.pipeline.embed import receipts
from stella_ray.pipeline.encode import tokens_of, with_vectors
from stella_ray.pipeline.judge import Preparation, judge
from stella_ray.pipeline.ledger import Ledger
from stella_ray.pipeline.prepare import prepare_block, tokenised
from stella_ray.pipeline.write import write
from stella_ray.rows import table_schema
from stella_ray.settings import process_age
from stella_ray.table.opening import open_for_run
from stella_ray.table.vectors import VectorTable
from tests.conftest import HAN, make_encoder

DIM = 768
ROWS_PER_SHARD = 5_000


class StandIn:
    """An encoder that takes a device's time and gives unit vectors that mean nothing."""

    def __init__(self, tokens_per_second: float) -> None:
        self.tokens_per_second = tokens_per_second
        self.device = threading.Lock()
        dice = np.random.default_rng(0).standard_normal((1_024, DIM), np.float32)
        self.vectors = dice / np.linalg.norm(dice, axis=1, keepdims=True)

    def embed_tokens(self, rows: Ragged) -> Embedded:
        """Sleep as long as the device would take; one window at a time has it."""
        lengths = rows.lengths.astype(np.int32)
        spent = np.zeros(len(lengths), np.float32)
        if self.tokens_per_second:
            with self.device:
                began = time.perf_counter()
                time.sleep(len(rows.values) / self.tokens_per_second)
                spent += (time.perf_counter() - began) / len(lengths)
        return Embedded(self.reference(rows), lengths, spent, {})

    def reference(self, rows: Ragged) -> np.ndarray:
        """The same for a sample."""
        return self.vectors[np.arange(len(rows.lengths)) % len(self.vectors)]


def stand_in(tokens_per_second: float, *_: Any) -> Any:
    """What an actor takes for its encoder."""
    return StandIn(tokens_per_second)


def texts(count: int) -> list[str]:
    """Documents as the module says."""
    dice = np.random.default_rng(count)
    sizes = np.clip(np.exp(dice.normal(np.log(220), 0.9, count)), 8, 1_022).astype(int)
    letters = "".join(dice.choice(HAN, 1_000_000))
    starts = dice.integers(0, len(letters) - 1_022, count)
    return [letters[a : a + n] for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]


def write_corpus(folder: Path, rows: int) -> None:
    """Parquet shards of them."""
    folder.mkdir()
    found = texts(rows)
    for first in range(0, rows, ROWS_PER_SHARD):
        part = found[first : first + ROWS_PER_SHARD]
        ids = [f"doc-{first + i}" for i in range(len(part))]
        pq.write_table(pa.table({"id": ids, "text": part}), folder / f"{first:09}.parquet")


def table_of(home: Path, name: str) -> VectorTable:
    """An empty table."""
    schema = table_schema([], True, DIM, pa.float32())
    uri = str(home / name / "docs.lance")
    return open_for_run(uri, None, schema, {"name": name, "digest": "d"}, rebuild=False)


def preparation(home: Path) -> Preparation:
    """How the rows are prepared: with the tokenizer of the tests' encoder."""
    folder = home / "encoder"
    if not folder.exists():
        make_encoder(folder, layers=1)
    spec = find_encoder(EncoderSettings(path=str(folder)))
    return Preparation(kept=(), store_text=True, spec=spec, digest="d")


def cpu(stage: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process for a stage, and what it gave."""
    began = time.process_time()
    found = stage()
    return time.process_time() - began, found


def stages(home: Path, rows: int) -> None:
    """Print CPU seconds a million documents of each stage, on one core and without Ray."""
    write_corpus(home / "corpus", rows)
    how, table = preparation(home), table_of(home, "stages")
    shards = find_shards([str(home / "corpus")])
    items = [{"number": i, "path": s.path, "bytes": s.bytes} for i, s in enumerate(shards)]
    listed, known = pa.Table.from_pylist(items), table.known()
    spent: dict[str, float] = {}
    spent["read"], windows = cpu(
        lambda: list(read_shards(listed, CorpusColumns(), (), ROWS_PER_READ))
    )
    spent["key and look up"], judged = cpu(lambda: [judge(w, how, known) for w in windows])
    tokenizer = TextTokenizer(how.spec.folder, how.spec.max_tokens)
    words = [text for window in windows for text in window.column("text").to_pylist()]
    prefix = how.spec.prefix_text(how.spec.prefix)
    bare = tokenizer._tokenizer  # what the library alone takes, for the same texts
    spent["tokenise: the library alone"], encoded = cpu(
        lambda: [
            sum(len(e.ids) for e in bare.encode_batch_fast([prefix + t for t in words[at:][:512]]))
            for at in range(0, rows, 512)
        ]
    )
    spent["tokenise"], _ = cpu(
        lambda: [tokenizer(words[at : at + 512], prefix) for at in range(0, rows, 512)]
    )
    spent["tokenise, and make the block"], blocks = cpu(
        lambda: [tokenised(w, j, how) for w, j in zip(windows, judged, strict=True)]
    )
    encoder = StandIn(0)
    spent["make vectors a block"], vectors = cpu(
        lambda: [
            with_vectors(b, np.arange(len(b)), encoder.embed_tokens(tokens_of(b))) for b in blocks
        ]
    )
    schema = table.dataset.schema.remove_metadata()
    spent["write fragments"], found = cpu(
        lambda: [write(block, table.uri, schema, "run", known) for block in vectors]
    )
    ledger = Ledger(known)
    spent["driver: books and commit"], _ = cpu(
        lambda: ([ledger.add(one) for one in found], table.commit(ledger.take_pending()))
    )
    known = table.known()
    spent["all of them once more, unchanged: judge and sum up"], _ = cpu(
        lambda: [list(prepare_block(window, how, known, 512)) for window in windows]
    )
    tokens = sum(encoded)
    print(f"{rows:,} documents of {tokens / rows:.0f} tokens")
    for name, seconds in spent.items():
        print(f"| {name} | {seconds * 1e6 / rows:,.0f} |")
    share = spent["tokenise: the library alone"] / spent["tokenise"]
    print(f"tokenise: {tokens / spent['tokenise'] / 1e6:.2f} Mtok/s, {share:.0%} of the library's")


class CpuWatch(threading.Thread):
    """Adds up CPU seconds by role, five times a second; a worker changes its role with its task."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[str, float] = {}
        self.over = threading.Event()

    def run(self) -> None:
        """Watch until `over`."""
        own, before = psutil.Process(), dict[int, float]()
        while not self.over.wait(0.2):
            for process in [own, *own.children(recursive=True)]:
                try:
                    used = sum(process.cpu_times()[:2])
                    name = "driver" if process == own else role(process)
                except psutil.Error:
                    continue
                more = used - before.get(process.pid, 0.0)
                self.seconds[name] = self.seconds.get(name, 0.0) + more
                before[process.pid] = used


def feed(home: Path, rows: int, tokens_per_second: float, at_once: int, window_rows: int) -> None:
    """Run the flow into a table, and print how busy the device was and what the rest took."""
    table, how = table_of(home, f"at-once-{at_once}"), preparation(home)
    corpus = ShardedCorpus(find_shards([str(home / "corpus")]), CorpusColumns(), [])
    with cluster():
        pool = size_pool(PoolSettings(window_rows=window_rows))
        pool = dataclasses.replace(pool, windows_at_once=at_once)
        configure_data(pool, ray.data.DataContext.get_current())
        ledger = Ledger(table.known())
        target = {
            "uri": table.uri,
            "schema": table.dataset.schema.remove_metadata(),
            "run_id": "run",
            "known": ray.put(ledger.known),
        }
        opened = functools.partial(stand_in, tokens_per_second)
        watch = CpuWatch()
        watch.start()
        settings = EncoderSettings(path=how.spec.folder)
        first = 0
        for receipt in receipts(corpus, how, settings, pool, target, opened):
            ledger.add(receipt)
            first = first or ledger.counts.rows_read
        table.commit(ledger.take_pending())
        watch.over.set()
    counts = ledger.counts
    assert counts.rows_read == rows == table.dataset.count_rows()
    span = counts.encoded_until - counts.encoded_from
    steady = counts.encoded_until - counts.first_encoded
    start = process_age() - (time.time() - counts.first_encoded)
    print(
        f"{at_once} window(s) at once: {rows / span:,.0f} documents/s, {counts.tokens / span:,.0f}"
        f" tokens/s over {span:.1f} s; device busy {counts.encode_seconds / span:.1%}; behind the"
        f" first block {(rows - first) / steady:,.0f} documents/s; first window done {start:.1f} s"
        " after the process began"
    )
    per_million = {k: round(v * 1e6 / rows) for k, v in sorted(watch.seconds.items())}
    print(f"  CPU seconds a million documents, start-up included: {per_million}", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["stages", "feed"])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--tokens_per_second", type=float, default=0.0)
    parser.add_argument("--at_once", type=int, default=2)
    parser.add_argument("--window_rows", type=int, default=2_048)
    parser.add_argument("--corpus", type=Path, help="keep it in this folder, to use it again")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        if options.what == "stages":
            stages(home, options.rows)
            return
        if options.corpus:
            options.corpus.exists() or write_corpus(options.corpus, options.rows)
            (home / "corpus").symlink_to(options.corpus.resolve())
        else:
            write_corpus(home / "corpus", options.rows)
        rate, at_once = options.tokens_per_second, options.at_once
        feed(home, options.rows, rate, at_once, options.window_rows)


if __name__ == "__main__":
    main()
