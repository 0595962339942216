"""How near to n times as fast are n encoders, and what do late, lost and slow nodes cost?

    python -m benchmarks.scaling table --encoders 1,2,4,8,16 --nodes 1,2,4
    python -m benchmarks.scaling late|lost|mixed

Nodes are simulated on this machine (ray.cluster_utils) with logical GPUs; an encoder takes a GPU's
time by sleeping, which leaves the cores to the rest of the flow. Each encoder has the same number
of documents to do. `busy` is the share of the time in which encoders are at work, between the
moment at which all have begun and the one at which the first has done its last window; `tail` what
it takes from there to the end of the last window, in windows.

`late`: a second node joins a run of one, whose encoders are as many as find room. `lost`: one of
two is killed half-way, another comes. `mixed`: one of two nodes is three times as slow.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from benchmarks.attacks import ROOT, below, title
from benchmarks.pipeline import StandIn, preparation, table_of, write_corpus
from stella_ray.encode.embedded import Embedded
from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.tokens import Ragged
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import PoolSettings, cluster, configure_data, size_pool
from stella_ray.pipeline.corpus import ShardedCorpus, find_shards
from stella_ray.pipeline.embed import receipts
from stella_ray.pipeline.ledger import Ledger

WINDOW_ROWS = 256
TASK_CPUS_PER_ENCODER = 4
"""Logical: enough that reading, preparing and writing tasks never wait for bookkeeping."""


class Logged(StandIn):
    """A stand-in that writes down when it was at work; slow on nodes that are named so."""

    def __init__(self, tokens_per_second: float, folder: str) -> None:
        slow = ray.get_runtime_context().get_node_id() in (Path(folder) / "slow").read_text()
        super().__init__(tokens_per_second / (3 if slow else 1))
        node = ray.get_runtime_context().get_node_id()
        self.path = Path(folder) / f"{node[:8]}-{os.getpid()}.log"

    def embed_tokens(self, rows: Ragged) -> Embedded:
        """Sleep, and write it down."""
        with self.device:
            began = time.time()
            time.sleep(len(rows.values) / self.tokens_per_second)
            with self.path.open("a") as out:
                out.write(json.dumps([began, time.time(), len(rows.values)]) + "\n")
        lengths = rows.lengths.astype(np.int32)
        return Embedded(self.reference(rows), lengths, np.zeros(len(lengths), np.float32), {})


def logged(tokens_per_second: float, folder: str, *_: Any) -> Any:
    """What an actor takes for its encoder."""
    return Logged(tokens_per_second, folder)


class Nodes:
    """A simulated cluster; the head has neither GPUs nor CPUs."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.made = Cluster()
        self.made.add_node(num_cpus=0, temp_dir=folder, include_dashboard=False,
                           object_store_memory=600 << 20)  # fmt: skip

    def add(self, gpus: int) -> Any:
        """A node with so many GPUs."""
        return self.made.add_node(
            num_cpus=TASK_CPUS_PER_ENCODER * gpus, num_gpus=gpus, object_store_memory=300 << 20
        )

    def lose(self, node: Any) -> None:
        """A node is gone, without a word."""
        self.made.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """Nothing of it is left behind."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp", ignore_cleanup_errors=True) as at:
        made = Nodes(at)
        os.environ["RAY_ADDRESS"] = made.made.address
        try:
            with cluster():
                yield made
        finally:
            started = below()
            made.made.shutdown()
            for process in started:
                with contextlib.suppress(Exception):
                    if "ray" in title(process):
                        process.kill()


def flow(
    home: Path, rows: int, rate: float, settings: PoolSettings, logs: Path, slow: str = ""
) -> dict[str, list[list[float]]]:  # fmt: skip
    """Run a corpus into a table; returns each encoder's spells of work: began, ended, tokens."""
    (logs / "slow").write_text(slow)
    table, how = table_of(home, logs.name), preparation(home)
    name = home / f"corpus-{rows}"
    name.exists() or write_corpus(name, rows)
    corpus = ShardedCorpus(find_shards([str(name)]), CorpusColumns(), [])
    pool = size_pool(settings)
    print(f"  {pool}", flush=True)
    configure_data(pool, ray.data.DataContext.get_current())
    ledger = Ledger(table.known())
    target = {
        "uri": table.uri,
        "schema": table.dataset.schema.remove_metadata(),
        "run_id": "run",
        "known": ray.put(ledger.known),
    }
    encoder = EncoderSettings(path=how.spec.folder)
    opened = functools.partial(logged, rate, str(logs))
    for receipt in receipts(corpus, how, encoder, pool, target, opened):
        ledger.add(receipt)
    table.commit(ledger.take_pending())
    assert ledger.counts.rows_read == rows == table.dataset.count_rows(), "rows were lost"
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(logs.glob("*.log"))
    }


def busy(spells: dict[str, list[list[float]]]) -> tuple[float, float, float]:
    """The share of time at work while all are there, that time in seconds, and the tail's."""
    begun = max(one[0][0] for one in spells.values())
    done = min(one[-1][1] for one in spells.values())
    last = max(one[-1][1] for one in spells.values())
    worked = sum(
        max(0.0, min(b, done) - max(a, begun)) for one in spells.values() for a, b, _ in one
    )
    return worked / (done - begun) / len(spells), done - begun, last - done


def table(home: Path, encoders: list[int], counts: list[int], rows: int, rate: float) -> None:
    """Print the table of busy shares."""
    print("| nodes | encoders | busy | over s | tail s | tokens/s of the nominal rate |")
    for count in counts:
        for number in encoders:
            if number % count:
                continue
            with nodes() as made:
                for _ in range(count):
                    made.add(number // count)
                settings = PoolSettings(window_rows=WINDOW_ROWS, encoders=number)
                logs = Path(tempfile.mkdtemp(dir=home))
                spells = flow(home, rows * number, rate, settings, logs)
            assert len(spells) == number, f"{len(spells)} of {number} encoders worked"
            share, seconds, tail = busy(spells)
            tokens = sum(one[2] for found in spells.values() for one in found)
            span = max(s[-1][1] for s in spells.values()) - min(s[0][0] for s in spells.values())
            whole = tokens / span / (rate * number)
            cells = [f"{count}", f"{number}", f"{share:.1%}", f"{seconds:.0f}", f"{tail:.1f}"]
            print(f"| {' | '.join(cells)} | {whole:.1%} |", flush=True)


def worked(logs: Path, windows: int) -> None:
    """Wait until so many windows are done."""
    while sum(len(p.read_text().splitlines()) for p in logs.glob("*.log")) < windows:
        time.sleep(0.2)


def story(home: Path, what: str, rows: int, rate: float) -> None:
    """A run whose nodes come, go or are unlike each other."""
    auto = PoolSettings(window_rows=WINDOW_ROWS)
    with nodes() as made:
        first = made.add(2)
        second = made.add(2) if what != "late" else None

        slow = second.node_id if what == "mixed" and second else ""
        began = time.time()
        logs = Path(tempfile.mkdtemp(dir=home))
        with ThreadPoolExecutor(1) as beside:  # Ray starts nodes from the main thread alone
            going = beside.submit(flow, home, rows * 4, rate, auto, logs, slow)
            if what != "mixed":
                worked(logs, 4 if what == "late" else rows * 2 // WINDOW_ROWS)
                if what == "lost":
                    made.lose(second)
                made.add(2)
            spells = going.result()
    by_node = defaultdict(list)
    for name, found in spells.items():
        by_node[name.split("-")[0]] += found
    start = min(one[0] for found in spells.values() for one in found)
    for node, found in by_node.items():
        which = "first" if first.node_id.startswith(node) else "other"
        print(
            f"  {which} node {node}: {len(found)} windows, {sum(one[2] for one in found):,} tokens,"
            f" from {min(one[0] for one in found) - start:.0f} to"
            f" {max(one[1] for one in found) - start:.0f} s"
        )
    told = f"{what}: {rows * 4:,} documents, each once, in {time.time() - began:.0f} s"
    if what != "lost":  # where there is no time in which all are there
        share, seconds, tail = busy(spells)
        told += f"; busy {share:.1%} of {seconds:.0f} s, tail {tail:.1f} s"
    print(told)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["table", "late", "lost", "mixed"])
    parser.add_argument("--encoders", default="1,2,4,8,16")
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--rows", type=int, default=6_000, help="of each encoder")
    parser.add_argument("--tokens_per_second", type=float, default=28_300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        if given.what == "table":
            numbers = [[int(n) for n in text.split(",")] for text in (given.encoders, given.nodes)]
            table(home, *numbers, given.rows, given.tokens_per_second)
            return
        story(home, given.what, given.rows, given.tokens_per_second)


if __name__ == "__main__":
    main()
