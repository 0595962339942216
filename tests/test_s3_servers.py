"""One setting for s3fs and Lance, against real servers; and how long each is patient."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import psutil
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from lance.fragment import write_fragments

from stella_ray.storage import StorageSettings, filesystem, read_json, write_json
from stella_ray.storage_s3 import PatientS3FileSystem
from tests.conftest import S3Place, through
from tests.s3 import SECRET_KEY, FaultProxy, MotoServer, WeedServer, client

BYTES = bytes(range(256)) * 12_000
ROWS = pa.table({"number": list(range(100))})


@pytest.fixture(params=["moto", "weed"])
def place(request: pytest.FixtureRequest) -> S3Place:
    """A fresh bucket, on each of the servers."""
    return request.getfixturevalue("s3" if request.param == "moto" else "weed_s3")


def lance_round(uri: str, storage: StorageSettings) -> int:
    """What a run does: fragments, commits, a tag, reading it, cleaning up; returns the rows."""
    options = storage.for_lance()
    lance.write_dataset(ROWS, uri, storage_options=options)
    fragments = write_fragments(ROWS, uri, mode="append", storage_options=options)
    append = lance.LanceOperation.Append(fragments)
    newest = lance.LanceDataset.commit(uri, append, read_version=1, storage_options=options)
    newest.tags.create("live", newest.version)
    newest.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)
    return lance.dataset(uri, version="live", storage_options=options).count_rows()


def test_a_server_ends_with_its_test() -> None:
    with MotoServer() as server:
        process = psutil.Process(server._guard.pid)
        family = [process, *process.children(recursive=True)]
        assert len(family) == 2
    assert not any(one.is_running() for one in family)


def test_the_proxy_hands_everything_on_as_it_is(place: S3Place) -> None:
    with FaultProxy(place.endpoint_url) as proxy:
        asked = client(proxy.endpoint_url)
        there = {"Bucket": place.bucket, "Key": "a/名 b+c"}
        asked.put_object(**there, Body=BYTES, IfNoneMatch="*", Metadata={"a": "b"})
        with pytest.raises(ClientError, match="PreconditionFailed"):
            asked.put_object(**there, Body=b"", IfNoneMatch="*")
        found = asked.get_object(**there)
        assert found["Body"].read() == BYTES
        assert found["Metadata"] == {"a": "b"}
        assert asked.head_object(**there)["ContentLength"] == len(BYTES)
        part = asked.get_object(**there, Range="bytes=5-9")
        assert part["Body"].read() == BYTES[5:10]
        assert asked.list_objects_v2(Bucket=place.bucket)["KeyCount"] == 1
        asked.close()
        assert proxy.counts == {"all": 6}


@pytest.mark.parametrize(
    ("kind", "told", "written"),
    [
        ("500", "InternalError", False),
        ("503", "SlowDown", False),
        ("reset", "Connection was closed", False),
        ("cut", "Connection was closed", False),
        ("lose", "Connection was closed", True),
    ],
)
def test_the_proxy_breaks_what_it_is_told_to(
    s3: S3Place, s3_proxy: FaultProxy, kind: Any, told: str, written: bool
) -> None:
    asked, there = client(s3_proxy.endpoint_url), {"Bucket": s3.bucket, "Key": "a"}
    fault = s3_proxy.inject(kind, times=1, match="PUT .*/a$")
    with pytest.raises(Exception, match=told):
        asked.put_object(**there, Body=BYTES)
    found = asked.list_objects_v2(Bucket=s3.bucket)
    assert (found["KeyCount"] == 1) is written
    asked.put_object(**there, Body=BYTES)
    s3_proxy.inject("cut", times=1)
    with pytest.raises(Exception, match="Connection broken"):
        asked.get_object(**there)["Body"].read()
    asked.close()
    assert fault.done == 1
    assert s3_proxy.counts[kind] >= 1


def test_one_setting_opens_a_bucket_to_s3fs_and_to_lance(place: S3Place) -> None:
    write_json(f"{place.uri}/runs/1.json", {"名": 1}, place.storage)
    assert read_json(f"{place.uri}/runs/1.json", place.storage) == {"名": 1}
    assert read_json(f"{place.uri}/runs/2.json", place.storage) is None
    store, path = filesystem(f"{place.uri}/large", place.storage)
    store.pipe_file(path, BYTES * 8)
    with store.open(path, "rb") as file:
        assert file.read() == BYTES * 8
    assert store.cat_file(path) == BYTES * 8
    assert lance_round(f"{place.uri}/docs.lance", place.storage) == 200


def test_the_endpoint_may_come_from_the_environment_but_a_setting_wins(
    s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    by_environment = StorageSettings(retry_seconds=6)
    assert lance_round(f"{s3.uri}/a.lance", by_environment) == 200
    assert filesystem(s3.uri, by_environment)[0].exists(f"{s3.bucket}/a.lance")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert lance_round(f"{s3.uri}/b.lance", s3.storage) == 200
    assert filesystem(s3.uri, s3.storage)[0].exists(f"{s3.bucket}/b.lance")


def test_credentials_come_from_a_profile_as_well(
    weed_s3: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "credentials"
    keys.write_text(
        f"[mine]\naws_access_key_id = test\naws_secret_access_key = {SECRET_KEY}\n", "utf-8"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    PatientS3FileSystem.clear_instance_cache()
    write_json(f"{weed_s3.uri}/a.json", 1, weed_s3.storage)
    assert lance_round(f"{weed_s3.uri}/docs.lance", weed_s3.storage) == 200


def test_a_session_token_goes_along_and_anonymous_sends_no_signature(
    s3: S3Place, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = through(s3, s3_proxy)
    uri, libraries = f"{s3.uri}/docs.lance", (_write_by_s3fs, _write_by_lance)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TOKEN0TOKEN")
    for write in libraries:
        write(uri, storage)
        assert s3_proxy.headers["x-amz-security-token"] == "TOKEN0TOKEN"
        assert s3_proxy.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=test/")
    for write in libraries:
        with suppress(OSError):  # a private bucket: what counts is how it was asked
            write(uri, dataclasses.replace(storage, anonymous=True))
        assert "authorization" not in s3_proxy.headers
    assert all(f" /{s3.bucket}" in request for request in s3_proxy.seen)


def _write_by_s3fs(uri: str, storage: StorageSettings) -> None:
    store, path = filesystem(f"{uri}/{threading.get_ident()}", storage)
    store.pipe_file(path, BYTES)
    assert store.cat_file(path) == BYTES


def _write_by_lance(uri: str, storage: StorageSettings) -> None:
    assert write_fragments(ROWS, uri, storage_options=storage.for_lance())


def _open_by_lance(uri: str, storage: StorageSettings) -> None:
    lance.dataset(uri, storage_options=storage.for_lance()).to_table()


LIBRARIES = (_write_by_s3fs, _write_by_lance, _open_by_lance)


def _seconds(act: Callable[..., None], uri: str, storage: StorageSettings) -> tuple[float, bool]:
    """How long it took, and whether it succeeded."""
    began = time.monotonic()
    try:
        act(uri, storage)
    except (OSError, ValueError):
        return time.monotonic() - began, False
    return time.monotonic() - began, True


def _all(s3: S3Place, break_it: dict[str, Callable[[FaultProxy], Any]]) -> dict[str, Any]:
    """Every library against every way to break S3, each through a proxy of its own, at once."""
    _write_by_s3fs(f"{s3.uri}/docs.lance", s3.storage)
    lance.write_dataset(ROWS, f"{s3.uri}/docs.lance", storage_options=s3.storage.for_lance())
    with ExitStack() as stack, ThreadPoolExecutor(32) as pool:
        going = {}
        for kind, how in break_it.items():
            for act in LIBRARIES:
                proxy = stack.enter_context(FaultProxy(s3.endpoint_url))
                how(proxy)
                told = pool.submit(_seconds, act, f"{s3.uri}/docs.lance", through(s3, proxy))
                going[f"{kind} {act.__name__}"] = told
        return {name: told.result() for name, told in going.items()}


@pytest.mark.slow
def test_a_dead_store_is_given_up_after_about_retry_seconds(s3: S3Place) -> None:
    kinds = ("500", "503", "reset", "hang")
    dead = {kind: lambda proxy, kind=kind: proxy.inject(kind) for kind in kinds}
    ends = _all(s3, {**dead, "refused": lambda proxy: proxy.down()})
    assert not any(succeeded for _, succeeded in ends.values())
    for name, (seconds, _) in ends.items():
        # Lance adds up to 3 s of waits between listings, whatever the setting.
        assert 5.5 < seconds < 1.5 * 6 + 3, f"{name}: {seconds:.1f} s"


def test_an_outage_shorter_than_retry_seconds_goes_unnoticed(s3: S3Place) -> None:
    def refuse(proxy: FaultProxy) -> None:
        proxy.down()
        threading.Timer(2, proxy.up).start()

    kinds = ("500", "503", "reset", "hang")
    short = {kind: lambda proxy, kind=kind: proxy.inject(kind, for_seconds=2) for kind in kinds}
    ends = _all(s3, {**short, "refused": refuse})
    assert {name for name, (_, succeeded) in ends.items() if not succeeded} == set()


def test_a_read_that_breaks_off_is_read_again(s3: S3Place, s3_proxy: FaultProxy) -> None:
    store, path = filesystem(f"{s3.uri}/large", through(s3, s3_proxy))
    store.pipe_file(path, BYTES * 8)
    for read in (store.cat_file, lambda path: store.open(path, "rb").read()):
        fault = s3_proxy.inject("cut", times=3, match="GET")
        assert read(path) == BYTES * 8
        assert fault.done == 3


def test_an_upload_into_a_peer_that_stopped_reading_ends(s3: S3Place, s3_proxy: FaultProxy) -> None:
    store, path = filesystem(f"{s3.uri}/large", through(s3, s3_proxy, retry_seconds=2))
    s3_proxy.inject("hang", match="PUT")
    began = time.monotonic()
    with pytest.raises(OSError, match="timed out"):
        store.pipe_file(path, BYTES * 8)
    assert time.monotonic() - began < 5


def test_a_refusal_is_not_tried_again(weed: WeedServer, weed_s3: S3Place) -> None:
    with FaultProxy(weed.endpoint_url) as proxy:
        store, path = filesystem(f"{weed_s3.uri}/a", through(weed_s3, proxy))
        for code in ("AccessDenied", "ExpiredToken", "NotImplemented"):
            fault = proxy.inject("refuse", code=code, times=10, match="PUT")
            with pytest.raises(OSError, match="Told by S3"):
                store.pipe_file(path, b"1")
            assert fault.done == 1
            proxy.clear()
