"""One run at a time on one table, on a disk and on S3."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stella_ray.errors import SettingsError, TableError
from stella_ray.storage import StorageSettings
from stella_ray.table.lock import locked
from tests.conftest import S3Place, through
from tests.s3 import FaultProxy
from tests.table.other_run import LEASE, run


@pytest.fixture(params=["disk", "s3", pytest.param("weed_s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, StorageSettings]:
    """A folder for tables, on each kind of storage."""
    if request.param == "disk":
        return str(tmp_path / "db"), StorageSettings()
    s3: S3Place = request.getfixturevalue(request.param)
    return f"{s3.uri}/db", s3.storage


def take(uri: str, storage: StorageSettings, on_busy: Any = "fail", holder: str = "me") -> Any:
    return locked(
        uri, holder=holder, storage=storage, on_busy=on_busy, lease_seconds=LEASE, poll_seconds=0.1
    )


def test_a_second_run_fails_with_one_line_that_names_the_first(
    place: tuple[str, StorageSettings],
) -> None:
    folder, storage = place
    uri = f"{folder}/docs.lance"
    with take(uri, storage, holder="run 1") as lock:
        lock.assure()
        with pytest.raises(TableError, match=r"run 1 \(process") as caught, take(uri, storage):
            pass
        assert f"(process {os.getpid()} on " in str(caught.value)
        assert "--on_busy wait" in str(caught.value)
        assert "\n" not in str(caught.value)
        with take(f"{folder}/other.lance", storage):
            lock.assure()
    with take(uri, storage) as lock:
        lock.assure()


def test_a_second_run_waits_until_the_first_ends_and_says_so(
    place: tuple[str, StorageSettings], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, storage = place
    uri = f"{folder}/docs.lance"
    order: list[str] = []

    def second() -> None:
        with take(uri, storage, "wait", "run 2"):
            order.append("second")

    with take(uri, storage, holder="run 1") as lock:
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(1.5 * LEASE)
        lock.assure()
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    lines = [line for line in caplog.messages if "waiting for run 1" in line]
    assert len(lines) == 1


def test_a_dead_run_s_lock_is_free_soon(place: tuple[str, StorageSettings]) -> None:
    folder, storage = place
    uri = f"{folder}/docs.lance"
    with run(uri, storage, "dead run") as dead:
        assert dead.ask() == "locked"
        assert dead.ask() == "assured"
        dead.end()
        began = time.monotonic()
        with take(uri, storage, "wait") as lock:
            lock.assure()
    # Two seconds: S3's times are whole ones, and it is asked now and then.
    assert time.monotonic() - began < (LEASE + 3 if "://" in uri else 1)


def test_of_runs_that_race_for_a_dead_run_s_lock_one_wins(
    place: tuple[str, StorageSettings],
) -> None:
    folder, storage = place
    uri = f"{folder}/docs.lance"
    with run(uri, storage, "dead run") as dead, run(uri, storage) as b, run(uri, storage) as c:
        assert dead.ask() == "locked"
        dead.end()
        time.sleep(LEASE / 2 + 2.5 if "://" in uri else 0)
        for other in (b, c):
            other.tell()

        all_tried = threading.Barrier(7)

        def try_it(number: int) -> bool:
            try:
                with take(uri, storage, holder=str(number)):
                    all_tried.wait(60)
                    return True
            except TableError:
                all_tried.wait(60)
                return False

        with ThreadPoolExecutor(6) as pool:
            going = [pool.submit(try_it, number) for number in range(6)]
            won = [other.hear() == "locked" for other in (b, c)]
            all_tried.wait(60)
            won += [told.result() for told in going]
        assert won.count(True) == 1, won


def test_a_run_that_was_paused_too_long_finds_out_before_it_commits(s3: S3Place) -> None:
    uri = f"{s3.uri}/docs.lance"
    with run(uri, s3.storage, "paused run") as paused:
        assert paused.ask() == "locked"
        paused.process.send_signal(signal.SIGSTOP)
        with take(uri, s3.storage, "wait", "run 2") as lock:
            paused.process.send_signal(signal.SIGCONT)
            told = paused.ask()
            assert told.startswith(f"refused: {uri}: this run lost the table's lock to run 2 (pro")
            lock.assure()
        with take(uri, s3.storage):  # and it didn't take the other's lock away at its end
            pass


def test_a_paused_run_whose_lock_nobody_wanted_goes_on(s3: S3Place) -> None:
    with run(f"{s3.uri}/docs.lance", s3.storage) as paused:
        assert paused.ask() == "locked"
        paused.process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE / 2 + 1)
        paused.process.send_signal(signal.SIGCONT)
        assert paused.ask() == "assured"


def test_a_lock_is_kept_through_an_outage_longer_than_its_lease(
    s3: S3Place, s3_proxy: FaultProxy
) -> None:
    uri = f"{s3.uri}/docs.lance"
    with take(uri, through(s3, s3_proxy)) as lock:
        s3_proxy.inject("503", for_seconds=LEASE + 1)
        time.sleep(LEASE + 0.5)
        lock.assure()
        with pytest.raises(TableError, match="me \\(process"), take(uri, s3.storage):
            pass
    with take(uri, s3.storage):
        pass


def test_a_dead_store_ends_assure_with_one_line(s3: S3Place, s3_proxy: FaultProxy) -> None:
    with take(f"{s3.uri}/docs.lance", through(s3, s3_proxy, retry_seconds=1)) as lock:
        s3_proxy.down()
        time.sleep(LEASE / 3 + 0.1)
        with pytest.raises(TableError, match="no answer from S3 at http://127"):
            lock.assure()
        s3_proxy.up()


@pytest.mark.parametrize("method", ["PUT", "GET", ""])
def test_answers_that_are_lost_lose_no_lock(s3: S3Place, s3_proxy: FaultProxy, method: str) -> None:
    uri = f"{s3.uri}/docs.lance"
    fault = s3_proxy.inject("lose", times=2, match=method)
    with take(uri, through(s3, s3_proxy)) as lock:
        # Every second answer, from here on: each renewal meets its own first try.
        for _ in range(3):
            s3_proxy.inject("lose", times=1, match="PUT")
            time.sleep(LEASE / 3 + 0.1)
            lock.assure()
    assert fault.done == 2
    with take(uri, s3.storage):
        pass


def test_a_clock_that_is_wrong_here_changes_nothing(
    s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, real = f"{s3.uri}/docs.lance", time.time
    with take(uri, s3.storage):
        # botocore signs by the real time still: S3 itself would refuse a clock that is this wrong.
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        with pytest.raises(TableError, match="is writing to this table"), take(uri, s3.storage):
            pass


def test_a_lock_file_that_someone_deleted_is_noticed(tmp_path: Path) -> None:
    uri = str(tmp_path / "docs.lance")
    with take(uri, StorageSettings()) as lock:
        (tmp_path / "docs.lock").unlink()
        with pytest.raises(TableError, match=r"docs\.lock was deleted or replaced"):
            lock.assure()


def test_a_lock_object_that_someone_deleted_is_noticed(s3: S3Place, s3_fs: Any) -> None:
    with take(f"{s3.uri}/docs.lance", s3.storage) as lock:
        s3_fs.rm(f"{s3.bucket}/docs.lock")
        time.sleep(LEASE / 3 + 0.1)
        with pytest.raises(TableError, match="lost the table's lock to a run that has ended"):
            lock.assure()


def test_the_lock_lies_beside_the_table_and_is_gone_after(s3: S3Place, s3_fs: Any) -> None:
    with take(f"{s3.uri}/db/docs.lance", s3.storage):
        assert s3_fs.find(s3.bucket) == [f"{s3.bucket}/db/docs.lock"]
        written = json.loads(s3_fs.cat_file(f"{s3.bucket}/db/docs.lock"))
        assert {"holder": "me", "pid": os.getpid()}.items() <= written.items()
        assert {"host", "since"} <= written.keys()
    assert s3_fs.find(s3.bucket) == []


def test_a_lock_needs_a_disk_or_s3_and_the_right_to_write(tmp_path: Path, s3: S3Place) -> None:
    with (
        pytest.raises(SettingsError, match=r"gs://bucket/docs.lance: a table can't live there"),
        take("gs://bucket/docs.lance", StorageSettings()),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(TableError, match="can't be locked"),
        take(f"{tmp_path}/file/docs.lance", StorageSettings()),
    ):
        pass
    with (
        pytest.raises(TableError, match="there is no bucket"),
        take("s3://nobucket/docs.lance", s3.storage),
    ):
        pass


def test_a_lock_is_given_back_when_the_run_fails(place: tuple[str, StorageSettings]) -> None:
    folder, storage = place
    with pytest.raises(ZeroDivisionError), take(f"{folder}/docs.lance", storage):
        _ = 1 / 0
    with take(f"{folder}/docs.lance", storage):
        pass
