"""Corpus and table on S3: whole nights, outages, lost answers, and two runs at once."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lance
import pytest

from jobs.embed import EmbedJob, run
from jobs.search import SearchJob
from jobs.search import run as run_search
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import CorpusError, StellaError, TableError
from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.pipeline.corpus import find_shards
from stella_ray.pipeline.report import RunReport
from stella_ray.storage import filesystem
from stella_ray.table.publish import rollback
from stella_ray.table.versions import status
from tests.conftest import S3Place, through
from tests.jobs.conftest import documents
from tests.s3 import FaultProxy, client

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


@dataclass
class Lake:
    """A corpus and a table in a bucket."""

    place: S3Place
    encoder: Path

    @property
    def corpus(self) -> str:
        return f"{self.place.uri}/corpus"

    @property
    def table(self) -> str:
        return f"{self.place.uri}/db/docs"

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode()
        self.fs.pipe_file(f"{self.place.bucket}/corpus/{name}", data)

    @property
    def fs(self) -> Any:
        return filesystem(self.place.uri, self.place.storage)[0]

    def embed(self, **settings: Any) -> RunReport:
        usual = {
            "corpus": [self.corpus],
            "table": self.table,
            "encoder": EncoderSettings(path=str(self.encoder)),
            "storage": self.place.storage,
        }
        return run(EmbedJob(**(usual | settings)))

    def keep(self, folder: Path) -> None:
        """Copy the bucket onto the disk."""
        self.fs.get(f"{self.place.bucket}/", f"{folder}/", recursive=True)

    def restore(self, folder: Path) -> None:
        """Copy what `keep` kept into this bucket."""
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{self.place.bucket}/{path.relative_to(folder).as_posix()}"
                self.fs.pipe_file(key, path.read_bytes())

    def rows(self, table: str | None = None) -> dict[str, str]:
        """What is live, by id; fails on a doubled id."""
        uri = f"{table or self.table}.lance"
        options = self.place.storage.for_lance() if "://" in uri else None
        dataset = lance.dataset(uri, version="live", storage_options=options)
        rows = dataset.to_table(columns=["doc_id", "text"]).to_pylist()
        by_id = {row["doc_id"]: row["text"] for row in rows}
        assert len(by_id) == len(rows)
        return by_id


def texts(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["text"] for row in rows}


@pytest.fixture
def lake(s3: S3Place, tiny_encoder: Path, local_ray: None) -> Lake:
    """On moto, with two shards of ten documents."""
    lake = Lake(s3, tiny_encoder)
    lake.put("a.jsonl", documents(10))
    lake.put("deep/b.jsonl.gz", documents(10, 10))
    return lake


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a bucket's first night is kept for the next test."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def published(lake: Lake, kept: Path) -> Lake:
    """The same after its first night, which is embedded once for all."""
    if any(kept.iterdir()):
        lake.restore(kept)
    else:
        assert lake.embed().embedded == 20
        lake.keep(kept)
    assert lake.rows() == texts(documents(20))
    return lake


def test_nights_on_s3_embed_refresh_search_and_roll_back(published: Lake) -> None:
    lake, rows = published, documents(20)
    again = lake.embed(corpus=[f"{lake.corpus}/*.jsonl", f"{lake.corpus}/d*/*.gz"])
    assert (again.embedded, again.unchanged) == (0, 20)

    rows[3]["text"] = "长江流域的水稻"
    lake.put("a.jsonl", [*rows[:9], {"id": "bad", "text": None}])
    report = lake.embed(max_reject_fraction=0.1)
    assert (report.embedded, report.deleted, report.rejected) == (1, 1, 1)
    assert lake.rows() == texts([*rows[:9], *rows[10:]])
    assert report.rejects is not None
    reject = json.loads(lake.fs.cat_file(report.rejects.removeprefix("s3://")))
    assert (reject["shard"], reject["row"]) == (f"{lake.corpus}/a.jsonl", 9)

    storage = lake.place.storage
    for mode in ("vector", "text", "hybrid"):
        job = SearchJob(table=lake.table, query="长江流域", mode=mode, storage=storage)  # type: ignore[arg-type]
        assert run_search(job)[0]["doc_id"] == "d3"
    newest = status(f"{lake.table}.lance", storage)[0]
    assert "live" in newest.tags
    assert newest.gate
    assert all(check.passed for check in newest.gate)
    rollback(f"{lake.table}.lance", storage)
    assert lake.rows() == texts(documents(20))


def test_the_corpus_may_be_on_s3_and_the_table_on_a_disk(lake: Lake, tmp_path: Path) -> None:
    table = f"{tmp_path}/db/docs"
    assert lake.embed(table=table).embedded == 20
    assert lake.rows(table) == texts(documents(20))


def test_a_second_kind_of_store_serves_as_well(
    weed_s3: S3Place, tiny_encoder: Path, local_ray: None
) -> None:
    """SeaweedFS: another server, which checks signatures."""
    lake = Lake(weed_s3, tiny_encoder)
    lake.put("a.jsonl", documents(12))
    lake.embed()
    lake.put("a.jsonl", documents(12, 1))
    report = lake.embed()
    assert (report.embedded, report.unchanged, report.deleted) == (1, 11, 1)
    assert lake.rows() == texts(documents(12, 1))
    reader = {"AWS_ACCESS_KEY_ID": "reader"}
    done = shell(lake, "--on_busy", "fail", **reader)
    assert done.returncode == 5
    assert "error: " in done.stderr.splitlines()[-1]
    assert "may not do that" in done.stderr.splitlines()[-1]
    wrong = shell(lake, AWS_SECRET_ACCESS_KEY="wrong-wrong")
    assert (wrong.returncode, wrong.stderr.count("Traceback")) == (5, 0)
    assert "the secret key isn't the access key's" in wrong.stderr.splitlines()[-1]
    assert "wrong-wrong" not in wrong.stdout + wrong.stderr


def shell(lake: Lake, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The job as a user starts it, with the store's address as its only setting."""
    words = [sys.executable, "jobs/embed.py", "--corpus", lake.corpus, "--table", lake.table]
    words += ["--encoder.path", str(lake.encoder)]
    words += ["--storage.endpoint_url", lake.place.endpoint_url, *more]
    known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        words, cwd=ROOT, env={**known, **lake.place.environment, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_no_secret_is_in_what_a_run_prints_stores_or_is_called(lake: Lake) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKIAVERYPUBLICKEY",
        "AWS_SECRET_ACCESS_KEY": "sEcReT-oF-tHe-LaKe",
        "AWS_SESSION_TOKEN": "tOkEn-oF-tHe-LaKe",
    }
    titles: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    titles.append(path.read_bytes().decode(errors="replace"))
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = shell(lake, **secrets)
    over.set()
    watcher.join()
    assert done.returncode == 0, done.stderr
    stored = b"".join(lake.fs.cat_file(path) for path in lake.fs.find(lake.place.bucket))
    assert any("ray::" in title for title in titles)
    for secret in ("sEcReT-oF-tHe-LaKe", "tOkEn-oF-tHe-LaKe"):
        assert secret not in done.stdout + done.stderr
        assert secret.encode() not in stored
        assert not any(secret in title for title in titles)


def test_a_wrong_bucket_is_one_line(lake: Lake) -> None:
    with pytest.raises(CorpusError, match="there is no bucket 'no-such-bucket'") as raised:
        lake.embed(corpus=["s3://no-such-bucket/corpus"])
    assert "\n" not in str(raised.value)
    with pytest.raises(TableError, match="there is no bucket 'no-such-bucket'"):
        lake.embed(table="s3://no-such-bucket/db/docs")
    with pytest.raises(CorpusError, match=r"no such file or folder; check --corpus"):
        lake.embed(corpus=[f"{lake.place.uri}/elsewhere"])


def test_a_store_without_conditional_writes_is_refused_before_anything_is_written(
    lake: Lake, s3_proxy: FaultProxy
) -> None:
    s3_proxy.inject("strip", header="If-None-Match")
    with pytest.raises(TableError, match="doesn't heed If-None-Match"):
        lake.embed(storage=through(lake.place, s3_proxy))
    assert not lake.fs.find(f"{lake.place.bucket}/db")


@pytest.mark.slow
def test_thousands_of_shards_are_listed_by_a_request_for_each_thousand(
    lake: Lake, s3_proxy: FaultProxy
) -> None:
    asked = client(lake.place.endpoint_url)
    for i in range(1_100):
        asked.put_object(Bucket=lake.place.bucket, Key=f"many/{i:05}.jsonl", Body=b"{}")
    asked.close()
    found = find_shards([f"{lake.place.uri}/many"], through(lake.place, s3_proxy))
    assert [shard.path for shard in found[:1] + found[-1:]] == [
        f"{lake.place.uri}/many/{i:05}.jsonl" for i in (0, 1_099)
    ]
    assert len(found) == 1_100
    assert s3_proxy.counts["all"] <= 4


# ---------------------------------------------------------------- an unkind store

OUTAGES = ["reset"]
"""Of a whole run; each of its parts meets all kinds in test_s3_servers.py and test_lock.py."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", OUTAGES)
def test_an_outage_for_a_while_is_outlasted(
    published: Lake, s3_proxy: FaultProxy, kind: Any
) -> None:
    lake, storage = published, through(published.place, s3_proxy, retry_seconds=60)
    lake.put("c.jsonl", documents(30, 20))
    over = threading.Event()

    def weather() -> None:
        """Half a second of every two, while the run lasts; the first as it begins."""
        while True:
            s3_proxy.inject(kind, for_seconds=0.5, seconds=2.0)
            if over.wait(1.5):
                return

    thread = threading.Thread(target=weather)
    thread.start()
    try:
        pool = PoolSettings(window_rows=8, rows_per_commit=8)
        report = lake.embed(storage=storage, pool=pool)
    finally:
        over.set()
        thread.join()
    assert s3_proxy.counts[kind]
    assert report.embedded == 30
    assert lake.rows() == texts(documents(50))


def test_an_outage_for_good_is_one_line_and_leaves_what_was_live(
    published: Lake, s3_proxy: FaultProxy
) -> None:
    lake, storage = published, through(published.place, s3_proxy, retry_seconds=3)
    lake.put("c.jsonl", documents(5, 20))
    for where, method, code in (("corpus", "GET", 3), ("db/docs.lance/_versions", "PUT", 5)):
        s3_proxy.inject("503", match=rf"{method} /[^/]+/{where}")
        began = time.monotonic()
        with pytest.raises(StellaError) as raised:
            lake.embed(storage=storage)
        assert raised.value.exit_code == code
        assert "S3" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert time.monotonic() - began < 60
        assert lake.rows() == texts(documents(20))
        s3_proxy.clear()
    assert lake.embed().table_rows == 25
    assert lake.rows() == texts(documents(25))


def test_a_commit_whose_answer_is_lost_is_made_once(published: Lake, s3_proxy: FaultProxy) -> None:
    lake, storage = published, through(published.place, s3_proxy, retry_seconds=20)
    lake.put("c.jsonl", documents(30, 20))
    fault = s3_proxy.inject("lose", match=r"PUT .*/_versions/")
    report = lake.embed(
        storage=storage, pool=PoolSettings(window_rows=8, rows_per_commit=8), max_delete_fraction=1
    )
    assert fault.done >= 2
    assert (report.embedded, report.table_rows) == (30, 50)
    assert lake.rows() == texts(documents(50))


# ---------------------------------------------------------------- two runs at once


def test_a_second_run_stops_or_waits_and_another_table_is_free(
    lake: Lake, s3_proxy: FaultProxy
) -> None:
    slow = through(lake.place, s3_proxy, retry_seconds=30)
    s3_proxy.inject("slow", match="GET /[^/]+/corpus/", seconds=2.0)
    first: list[RunReport] = []
    runner = threading.Thread(target=lambda: first.append(lake.embed(storage=slow)))
    runner.start()
    while not lake.fs.exists(f"{lake.place.bucket}/db/docs.lock"):
        time.sleep(0.05)
    with pytest.raises(TableError, match=r"run \w+-\w+ \(process \d+ on .*\) is writing to this"):
        lake.embed()
    assert lake.embed(table=f"{lake.place.uri}/db/others").embedded == 20
    assert runner.is_alive()
    waited = lake.embed(on_busy="wait")
    runner.join()
    assert first[0].embedded == 20
    assert (waited.embedded, waited.unchanged) == (0, 20)
    assert not lake.fs.exists(f"{lake.place.bucket}/db/docs.lock")


def test_the_lock_of_a_dead_run_expires(published: Lake) -> None:
    import uuid

    lake = published
    holder = {"holder": "run of a dead node", "host": "gone", "pid": 7, "since": "yesterday"}
    lock = {**holder, "lease_seconds": 3.0, "token": uuid.uuid4().hex}
    lake.fs.pipe_file(f"{lake.place.bucket}/db/docs.lock", json.dumps(lock).encode())
    with pytest.raises(TableError, match=r"run of a dead node .* its lock expires after 3 s"):
        lake.embed(storage=replace(lake.place.storage))
    assert lake.embed(on_busy="wait", lease_seconds=3.0).unchanged == 20
