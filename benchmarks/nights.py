"""Nights for benchmarks.chaos: where things lie, a corpus that changes, a reader.

The reader uses Lance itself and nothing of ours: it can't share an error with what it checks.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import lance
import numpy as np
import pyarrow as pa

from tests.conftest import HAN

SHARDS = 20


@dataclasses.dataclass
class Place:
    """Where corpus and table lie, and how this process reads there, past all faults."""

    uri: str
    flags: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, str] | None = None
    files: Any = dataclasses.field(default_factory=lambda: fsspec.filesystem("file"))
    proxy: Any = None

    @property
    def table(self) -> str:
        """The Lance dataset."""
        return f"{self.uri}/db/docs.lance"

    def open(self, version: str | int) -> lance.LanceDataset:
        """The table at a version or tag."""
        return lance.dataset(self.table, version=version, storage_options=self.options)


class Corpus:
    """Documents in shards, as they change from night to night."""

    def __init__(self, count: int, dice: random.Random) -> None:
        self.dice, self.night, self.made, self.changed = dice, 0, 0, count
        self.texts: dict[str, str] = {}
        self.shards: dict[str, list[str]] = {f"s{i}-0": [] for i in range(SHARDS)}
        self._add(count)

    def _text(self) -> str:
        """A text that says which night wrote it."""
        return f"第{self.night}夜，" + "".join(self.dice.choices(HAN, k=self.dice.randint(10, 80)))

    def _add(self, count: int) -> None:
        for _ in range(count):
            name, self.made = f"d{self.made}", self.made + 1
            self.texts[name] = self._text()
            self.shards[self.dice.choice(list(self.shards))].append(name)

    def mutate(self) -> None:
        """Edit 3 %, delete 1 %, add 1 %, move 1 % to other shards; every other night rename one."""
        self.night += 1
        few = max(1, len(self.texts) // 100)
        chosen = self.dice.sample(sorted(self.texts), 5 * few)
        edited, deleted, moved = chosen[: 3 * few], chosen[3 * few : 4 * few], chosen[4 * few :]
        self.texts |= {name: self._text() for name in edited}
        gone = {*deleted, *moved}
        self.shards = {k: [n for n in names if n not in gone] for k, names in self.shards.items()}
        for name in deleted:
            del self.texts[name]
        for name in moved:
            self.shards[self.dice.choice(list(self.shards))].append(name)
        if self.night % 2:
            old = self.dice.choice(list(self.shards))
            self.shards[f"{old.partition('-')[0]}-{self.night}"] = self.shards.pop(old)
        self._add(few)
        self.changed = 4 * few

    def write(self, place: Place) -> None:
        """Write every shard anew, and remove the others."""
        folder = f"{place.uri}/corpus"
        place.files.makedirs(folder, exist_ok=True)
        for path in place.files.find(folder):
            if Path(path).name.removesuffix(".jsonl.gz") not in self.shards:
                place.files.rm_file(path)
        for shard, names in self.shards.items():
            rows = [{"id": name, "text": self.texts[name]} for name in names]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            place.files.pipe_file(f"{folder}/{shard}.jsonl.gz", gzip.compress(lines.encode(), 1))

    def digest(self) -> str:
        """One for each state; `digest` of a table that holds exactly it is the same."""
        return digest(self.texts.items())


def digest(rows: Iterable[tuple[str, str]]) -> str:
    """Of (id, text) pairs as a multiset."""
    lines = "\n".join(sorted(f"{name}\t{text}" for name, text in rows))
    return hashlib.sha256(lines.encode()).hexdigest()


def pairs(table: pa.Table) -> list[tuple[str, str]]:
    """(id, text) of each row."""
    return list(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))


class Reader(threading.Thread):
    """Reads and searches what is live, again and again; remembers what was wrong."""

    def __init__(self, place: Place, states: dict[str, int], dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.place, self.states, self.dice = place, states, dice
        self.over, self.newest = threading.Event(), 0
        self.seen, self.wrong = Counter[str](), list[str]()

    def run(self) -> None:
        """Until `over`."""
        while not self.over.wait(0.5):
            try:
                self.look()
            except Exception as error:
                self.wrong.append(f"reader, night {self.newest}: {error!r}"[:500])

    def look(self) -> None:
        """Once: what is live is one night, and no older one; each hit is a row of it."""
        live = self.place.open("live")
        table = live.to_table(columns=["doc_id", "text", "vector"])
        rows = pairs(table)
        night = self.states.get(digest(rows))
        if night is None or night < self.newest:
            kinds = Counter(text.partition("，")[0] for _, text in rows)
            self.wrong.append(
                f"reader: {live.version} is no night or an old one ({night}): {kinds}"
            )
            return
        self.newest = night
        self.seen["reads"] += 1
        query = self.dice.randrange(len(rows))
        vector = np.asarray(table["vector"][query].as_py(), np.float32)
        nearest = {"column": "vector", "q": vector, "k": 5, "metric": "cosine"}
        near = live.to_table(columns=["doc_id", "text", "_distance"], nearest=nearest)
        hits = {"vector": near}
        if "text" in {name for index in live.describe_indices() for name in index.field_names}:
            words = rows[query][1][-8:]
            hits["text"] = live.to_table(
                columns=["doc_id", "text", "_score"], full_text_query=words, limit=5
            )
        for kind, found in hits.items():
            self.seen[f"{kind} searches"] += 1
            if not len(found) or not set(pairs(found)) <= set(rows):
                self.wrong.append(f"reader: a {kind} search found {pairs(found)}"[:500])


@contextmanager
def made_place(home: Path, server_name: str) -> Iterator[Place]:
    """A folder, or a bucket of a `moto` or `weed` server, behind a proxy that breaks things."""
    if server_name == "local":
        yield Place(str(home / "data"))
        return
    from tests import s3

    keys = {"AWS_ACCESS_KEY_ID": s3.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": s3.SECRET_KEY}
    os.environ |= {**keys, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    server = s3.WeedServer() if server_name == "weed" else s3.MotoServer()
    with server, s3.FaultProxy(server.endpoint_url) as proxy:
        s3.client(server.endpoint_url).create_bucket(Bucket="chaos")
        flags = ["--storage.endpoint_url", proxy.endpoint_url, "--storage.retry_seconds", "20"]
        # The lock of a killed run lives on until its lease is over.
        flags += ["--storage.timeout_seconds", "5", "--on_busy", "wait", "--lease_seconds", "10"]
        lance_options = {"aws_endpoint": server.endpoint_url, "allow_http": "true"}
        files = fsspec.filesystem("s3", endpoint_url=server.endpoint_url, use_listings_cache=False)
        yield Place("s3://chaos", flags, lance_options, files, proxy)
