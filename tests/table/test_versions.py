"""What status tells of each version, and that nothing piles up, run by run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stella_ray.errors import TableError
from stella_ray.storage import StorageSettings, filesystem, write_json
from stella_ray.table.fragments import write_rows
from stella_ray.table.gate import GateCheck
from stella_ray.table.index import tidy
from stella_ray.table.opening import start_rebuild
from stella_ray.table.publish import LIVE, PREVIOUS, publish, rollback
from stella_ray.table.search import open_live
from stella_ray.table.vectors import VectorTable
from stella_ray.table.versions import (
    VersionStatus,
    clean,
    clean_runs,
    runs_folder,
    status,
    stored_bytes,
)
from tests.table.conftest import ENCODER, SCHEMA, add, addresses_of, ids_in, numbered, rows

HERE = StorageSettings()
PASSED = GateCheck("rows", True, "1 rows", "1 rows")


def night(table: VectorTable, run_id: str, *ids: str) -> int:
    """A run: rows of a few commits, one gone again, tidied, published."""
    table.run_id = run_id
    for doc_id in [*ids, "gone"]:
        add(table, [doc_id])
    table.commit([], addresses_of(table, ["gone"]))
    tidy(table)
    publish(table, run_id)
    return table.version


def report(uri: str, run_id: str, **more: Any) -> None:
    write_json(
        f"{runs_folder(uri)}/{run_id}/report.json", {"run_id": run_id, "table": uri, **more}, HERE
    )


def files(folder: str) -> set[str]:
    return {str(path) for path in Path(folder).rglob("*") if path.is_file()}


def versions(table: VectorTable) -> list[int]:
    return [one.version for one in status(table.uri, table.storage)]


def test_status_tells_versions_newest_first_with_rows_time_size_and_tags(
    docs: VectorTable,
) -> None:
    publish(add(docs, ["a", "b"]), "r2")
    docs.commit([], addresses_of(docs, ["a"]))
    publish(docs, "r3")
    add(docs, ["c", "d", "e"])
    found = status(docs.uri)
    assert [(one.version, one.rows, one.tags) for one in found] == [
        (4, 4, []), (3, 1, [LIVE, "run-r3"]), (2, 2, [PREVIOUS, "run-r2"]), (1, 0, []),
    ]  # fmt: skip
    sizes = [one.data_bytes for one in found]
    assert sizes == [*sorted(sizes[:3], reverse=True), 0]
    assert sizes[0] == sum(path.stat().st_size for path in Path(docs.uri).glob("data/*"))
    times = [one.written for one in found]
    assert times == sorted(times, reverse=True)
    assert abs(datetime.now() - times[0]) < timedelta(minutes=5), "the clock of this machine"


def test_status_after_a_rollback_shows_live_on_the_older_version(docs: VectorTable) -> None:
    publish(add(docs, ["a"]), "r2")
    publish(add(docs, ["b"]), "r3")
    rollback(docs.uri)
    assert [(one.version, one.tags) for one in status(docs.uri)] == [
        (3, [PREVIOUS, "run-r3"]), (2, [LIVE, "run-r2"]), (1, []),
    ]  # fmt: skip


def test_status_of_a_rebuild_counts_each_versions_own_rows(docs: VectorTable) -> None:
    publish(add(docs, numbered(5)), "r2")
    start_rebuild(docs, SCHEMA, docs.encoder())
    assert [one.rows for one in status(docs.uri)] == [0, 5, 0]


def test_status_of_many_versions_counts_every_one(docs: VectorTable) -> None:
    for i in range(120):
        add(docs, [f"d{i}"])
    found = status(docs.uri)
    assert [one.version for one in found] == list(range(121, 0, -1))
    assert [one.rows for one in found] == list(range(120, -1, -1))


def test_a_version_belongs_to_the_run_that_committed_it_or_tidied_up_after_it(
    docs: VectorTable,
) -> None:
    last = night(docs, "first", *numbered(9))
    assert docs.dataset.read_transaction(last).transaction_properties == {}, "no words of its own"
    assert {one.run for one in status(docs.uri)[:-1]} == {"first"}
    assert status(docs.uri)[-1].run is None
    newest = night(docs, "second", *numbered(9, first=9))
    runs = {one.version: one.run for one in status(docs.uri)}
    assert runs[last], runs[last + 1] == ("first", "second")
    clean(docs, keep=5)
    runs = {one.version: one.run for one in status(docs.uri)}
    assert runs == {last: "first", newest: "second"}, "by the tag, where the commits are gone"


def test_a_versions_gate_is_that_of_its_runs_report(docs: VectorTable) -> None:
    night(docs, "first", "a")
    failed = dataclasses.replace(PASSED, passed=False)
    report(docs.uri, "first", version=docs.version, gate=[dataclasses.asdict(PASSED)])
    docs.run_id = "second"
    add(docs, ["b"])
    add(docs, ["c"])
    report(docs.uri, "second", version=docs.version, gate=[dataclasses.asdict(failed)])
    found: dict[int, VersionStatus] = {one.version: one for one in status(docs.uri)}
    newest = docs.version
    assert found[newest].gate == [failed]
    assert found[newest - 1].gate is None, "the gate saw another version of the run"
    assert found[newest - 2].gate == [PASSED]
    assert found[1].gate is None
    report(docs.uri, "second", version=docs.version)
    assert status(docs.uri)[0].gate is None, "a report without a gate"


def test_status_of_a_missing_table_says_so(docs: VectorTable) -> None:
    with pytest.raises(TableError, match="no such table"):
        status(docs.uri.replace("docs", "nope"), HERE)


def test_cleaning_keeps_the_newest_version_the_tagged_ones_and_what_they_need(
    docs: VectorTable,
) -> None:
    docs.dataset.tags.create("mine", 1)
    nights = [night(docs, f"r{i}", *numbered(9, first=9 * i)) for i in range(5)]
    add(docs, ["candidate"])
    before = {v: ids_in(VectorTable.open(docs.uri, v)) for v in [*nights, docs.version]}
    rollback(docs.uri)
    gone = clean(docs, keep=3)
    assert versions(docs) == [docs.version, *nights[:1:-1], 1]
    assert gone.versions == docs.version - 5
    assert gone.bytes > 0
    assert sorted(docs.tagged()) == [LIVE, PREVIOUS, "mine", "run-r2", "run-r3", "run-r4"]
    for version in (*nights[2:], docs.version):
        opened = VectorTable.open(docs.uri, version)
        assert ids_in(opened) == before[version]
        assert opened.dataset.to_table(filter="doc_id = 'd3'").num_rows == 1, "by the index"
    assert ids_in(open_live(docs.uri)) == before[nights[3]]


def test_a_second_cleaning_finds_nothing_to_do(docs: VectorTable) -> None:
    for i in range(3):
        night(docs, f"r{i}", f"d{i}")
    clean(docs, keep=1)
    there = files(docs.uri)
    assert dataclasses.astuple(clean(docs, keep=1)) == (0, 0)
    assert files(docs.uri) == there


def test_live_and_the_way_back_stay_with_their_runs_however_few_are_kept(
    docs: VectorTable,
) -> None:
    first, second, _ = (night(docs, f"r{i}", f"d{i}") for i in range(3))
    docs.dataset.tags.update(LIVE, first)
    clean(docs, keep=1)
    assert {"run-r0", "run-r1", "run-r2"} <= set(docs.tagged())
    docs.dataset.tags.update(PREVIOUS, first)
    clean(docs, keep=1)
    assert "run-r1" not in docs.tagged()
    assert second not in versions(docs)


def test_what_a_dead_run_left_behind_goes(docs: VectorTable) -> None:
    night(docs, "r0", *numbered(30))
    clean(docs, keep=1)
    there, size = files(docs.uri), stored_bytes(docs)
    write_rows(rows(numbered(100)), docs.uri)  # never committed
    fragments = [fragment.fragment_id for fragment in docs.dataset.get_fragments()]
    docs.dataset.create_index_uncommitted("doc_id", "BTREE", name="more", fragment_ids=fragments)
    Path(docs.uri, "data/.tmpAbC").write_bytes(b"half of a data file")
    left = stored_bytes(docs)
    assert left > size
    assert dataclasses.astuple(clean(docs, keep=1)) == (0, left - size)
    assert files(docs.uri) == there
    assert stored_bytes(docs) == size


def test_what_a_dead_commit_left_behind_goes_after_the_next_night(docs: VectorTable) -> None:
    night(docs, "r0", "a")
    left = [
        Path(docs.uri, name)
        for name in ("_versions/.tmp_9", "_transactions/7-dead.txn", "_deletions/0-7-7.arrow")
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    night(docs, "r1", "b")
    clean(docs, keep=1)
    assert [path for path in left if path.exists()] == []


def test_storage_does_not_grow_run_by_run(docs: VectorTable) -> None:
    sizes, counts = [], []
    docs.commit(write_rows(rows(numbered(200)), docs.uri))
    for i in range(24):
        docs.commit([], addresses_of(docs, numbered(20, first=20 * i)))
        add(docs, numbered(20, first=200 + 20 * i))
        tidy(docs)
        publish(docs, f"r{i:02}")
        clean(docs, keep=2)
        sizes.append(stored_bytes(docs))
        counts.append(len(files(docs.uri)))
    # Between two compactions it does; so the nights are taken by the dozen.
    assert max(sizes[12:]) < 1.1 * max(sizes[:12])
    assert max(counts[12:]) < 1.1 * max(counts[:12])
    assert docs.dataset.count_rows() == 200


def test_old_reports_of_this_table_go_and_others_stay(docs: VectorTable) -> None:
    other = docs.uri.replace("docs", "other")
    night(docs, "20260101T000000-aaaaaa", "a")
    for day in range(1, 8):
        report(docs.uri, f"2026010{day}T000000-aaaaaa")
        report(other, f"2026010{day}T000000-bbbbbb")
    folder = Path(runs_folder(docs.uri))
    for run in ("20260102T000000-killed", "20260107T000000-killed"):
        (folder / run).mkdir()
        (folder / run / "rejects.jsonl").write_text("{}\n")
    (folder / "20260103T000000-broken").mkdir()
    (folder / "20260103T000000-broken" / "report.json").write_text("{")
    assert clean_runs(docs, keep=100) == 0
    assert clean_runs(docs, keep=3) == 4
    left = sorted(path.name for path in folder.iterdir())
    assert [name for name in left if "aaaaaa" in name] == [
        "20260101T000000-aaaaaa",  # is live
        *(f"2026010{day}T000000-aaaaaa" for day in (5, 6, 7)),
    ]
    assert len([name for name in left if "bbbbbb" in name]) == 7
    assert [name for name in left if "killed" in name] == ["20260107T000000-killed"]
    assert clean_runs(docs, keep=3) == 0


def test_a_table_without_reports_has_none_to_clean(docs: VectorTable) -> None:
    assert clean_runs(docs) == 0


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    """A local S3 with a bucket named `bucket`."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    storage = StorageSettings(endpoint_url=f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "test")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        filesystem("s3://bucket", storage)[0].call_s3("create_bucket", Bucket="bucket")
        yield storage
    server.stop()


def test_on_s3_cleaning_also_ends_the_uploads_of_dead_workers(s3: StorageSettings) -> None:
    uri = "s3://bucket/db/docs.lance"
    docs = VectorTable.create(uri, SCHEMA, ENCODER, s3)
    for i in range(3):
        docs.run_id = f"r{i}"
        docs.commit(write_rows(rows([f"d{i}"]), uri, s3))
        publish(docs, f"r{i}")
        write_json(
            f"{runs_folder(uri)}/r{i}/report.json",
            {"table": uri, "version": docs.version, "gate": [dataclasses.asdict(PASSED)]},
            s3,
        )
    write_rows(rows(numbered(50)), uri, s3)
    store, path = filesystem(uri, s3)
    begun = {"Bucket": "bucket", "Key": "db/docs.lance/data/half.lance"}
    for key in ("db/docs.lance/data/half.lance", "db/docs.lance2/data/half.lance"):
        store.call_s3("create_multipart_upload", **{**begun, "Key": key})
    gone = clean(docs, keep=1)
    assert (gone.versions, gone.bytes > 0) == (2, True)
    uploads = store.call_s3("list_multipart_uploads", Bucket="bucket")["Uploads"]
    assert [one["Key"] for one in uploads] == ["db/docs.lance2/data/half.lance"]
    assert len(store.ls(f"{path}/data", refresh=True)) == 3
    assert clean(docs, keep=1) == dataclasses.replace(gone, versions=0, bytes=0)
    assert clean_runs(docs, keep=1) == 1
    found = status(uri, s3)
    assert [(one.run, one.tags) for one in found] == [
        ("r2", [LIVE, "run-r2"]), ("r1", [PREVIOUS, "run-r1"]),
    ]  # fmt: skip
    assert found[0].gate == [PASSED]
    assert json.loads(store.cat_file("bucket/db/runs/r2/report.json"))["table"] == uri
