"""SIGKILL to encoders, workers and drivers: no row lost or doubled, readers see whole nights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import psutil
import pyarrow as pa
import pytest

from jobs.embed import EmbedJob, run
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.pipeline.report import RunReport
from stella_ray.rows import row_keys
from stella_ray.table.vectors import VectorTable
from tests.conftest import make_encoder
from tests.jobs.conftest import text

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("STELLA_RAY_TEST_KILLS", "1"))


@pytest.fixture
def night(tmp_path: Path, local_ray: None) -> Night:
    """With an encoder slow enough to be hit in the middle of its work."""
    return Night(tmp_path, make_encoder(tmp_path / "model", layers=8))


class Night:
    """A corpus, a table, and the job: in this process, or as one of its own."""

    def __init__(self, home: Path, encoder: Path) -> None:
        self.corpus, self.table, self.encoder = home / "corpus", home / "db/docs", encoder

    def start(
        self, *more: str, before: tuple[str, ...] = (), **known: str
    ) -> subprocess.Popen[str]:
        words = [sys.executable, *before, "jobs/embed.py"]
        words += ["--corpus", self.corpus, "--table", self.table]
        words += ["--encoder.path", self.encoder, "--pool.window_rows", "16"]
        words += ["--pool.rows_per_commit", "16", "--max_delete_fraction", "1"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= known
        return subprocess.Popen(
            [str(word) for word in [*words, *more]], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def embed(self) -> RunReport:
        return run(
            EmbedJob(
                corpus=[str(self.corpus)],
                table=str(self.table),
                encoder=EncoderSettings(path=str(self.encoder)),
                pool=PoolSettings(window_rows=16, rows_per_commit=16),
                max_delete_fraction=1,
            )
        )

    def version(self) -> int:
        try:
            return int(lance.dataset(f"{self.table}.lance").version)
        except ValueError:
            return 0

    def expected(self, rows: list[dict[str, Any]]) -> list[bytes]:
        """The keys that an undisturbed run leaves."""
        digest = find_encoder(EncoderSettings(path=str(self.encoder))).fingerprint["digest"]
        block = pa.table({"doc_id": [r["id"] for r in rows], "text": [r["text"] for r in rows]})
        return sorted(row_keys(block, [], digest).to_pylist())

    def found(self) -> list[bytes]:
        keys = VectorTable.open(f"{self.table}.lance", "live").known().keys
        return [key.ljust(16, b"\0") for key in keys.tolist()]


def corpus(count: int, salt: int) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": text(i * 7 + salt, 300 + i % 90)} for i in range(count)]


TITLES = {
    "EncodeBlocks": "ray::MapWorker(MapBatches(EncodeBlocks))",
    "write": "ray::MapBatches(write)",
    "read_shards": "ray::MapBatches(read_shards)",
}


class Reader(threading.Thread):
    """Reads what is live again and again, and remembers every state and error."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.uri, self.states, self.errors = uri, set[tuple[str, ...]](), list[str]()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            try:
                rows = lance.dataset(self.uri, version="live").to_table(
                    columns=["doc_id", "row_key"]
                )
            except Exception as error:
                self.errors.append(repr(error))
            else:
                self.states.add(tuple(sorted(key.hex() for key in rows["row_key"].to_pylist())))


def await_version(night: Night, driver: subprocess.Popen[str], version: int) -> None:
    while night.version() < version and driver.poll() is None:
        time.sleep(0.05)


def workers(name: str) -> Iterator[psutil.Process]:
    """Of this process's Ray."""
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


def test_a_killed_driver_loses_no_row_doubles_none_and_readers_never_see_half_a_night(
    night: Night, write_jsonl: Callable[..., Path]
) -> None:
    evening = corpus(100, salt=0)
    write_jsonl(night.corpus / "a.jsonl", evening)
    night.embed()
    assert night.found() == night.expected(evening)

    morning = corpus(150 + 100 * KILLS, salt=5)[
        50:
    ]  # every text edited, fifty documents gone, many new
    for i in range(6):
        write_jsonl(night.corpus / f"{'abcdef'[i]}.jsonl", morning[i::6])
    reader = Reader(f"{night.table}.lance")
    reader.start()
    dice = random.Random(7)
    for _ in range(KILLS):
        at = night.version() + dice.randint(1, 5)
        driver = night.start()
        await_version(night, driver, at)
        time.sleep(dice.random() / 2)
        os.killpg(driver.pid, signal.SIGKILL)
        said, _ = driver.communicate()
        assert driver.returncode == -signal.SIGKILL, said  # it was hit at work, not after
        assert night.found() == night.expected(evening)
    report = night.embed()
    time.sleep(0.3)
    reader.over.set()
    reader.join()

    assert night.found() == night.expected(morning)
    if KILLS:
        assert report.embedded < len(morning)  # what was committed was not embedded again
    assert not reader.errors
    whole_nights = {tuple(k.hex() for k in night.expected(rows)) for rows in (evening, morning)}
    assert reader.states == whole_nights


def test_killed_encoders_and_workers_are_replaced_and_the_run_ends_whole(
    night: Night, write_jsonl: Callable[..., Path]
) -> None:
    rows = corpus(500, salt=3)
    for i in range(4):
        write_jsonl(night.corpus / f"{i}.jsonl", rows[i::4])
    killed = {"EncodeBlocks": 0, "write": 0, "read_shards": 0}
    over = threading.Event()

    def kill_one_of_each() -> None:
        while not all(killed.values()) and not over.wait(0.01):
            for name in [name for name, count in killed.items() if not count]:
                if name == "EncodeBlocks" and night.version() < 2:
                    continue  # in the middle of its work, not while it starts
                for process in workers(TITLES[name]):
                    process.kill()
                    killed[name] += 1
                    break

    killer = threading.Thread(target=kill_one_of_each)
    killer.start()
    try:
        report = night.embed()
    finally:
        over.set()
        killer.join()
    assert killed["EncodeBlocks"]
    assert killed["write"] + killed["read_shards"]
    assert report.outcome == "published"
    assert night.found() == night.expected(rows)
