"""What S3 refuses, told in one line, and the probe at the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import lance
import pyarrow as pa
import pytest

from stella_ray.errors import CorpusError, SettingsError, TableError
from stella_ray.storage import StorageSettings, filesystem
from stella_ray.storage_faults import check_store, explain, storage_errors, without_secrets
from stella_ray.storage_s3 import PatientS3FileSystem
from tests.conftest import S3Place, through
from tests.s3 import FaultProxy
from tests.s3_proxy import Kind

SECRETS = ("TOKEN0TOKEN", "5161bac6", "AKIAKEYID", "AWS4-HMAC", "testtest")


def by_lance(uri: str, storage: StorageSettings) -> None:
    lance.write_dataset(pa.table({"a": [1]}), uri, storage_options=storage.for_lance())


def by_s3fs(uri: str, storage: StorageSettings) -> None:
    store, path = filesystem(f"{uri}/a", storage)
    store.find(path)
    store.pipe_file(path, b"1")


DEAD: dict[Kind, str] = {
    "503": "was overloaded or out of order (SlowDown) for about 1 s",
    "500": "was overloaded or out of order (InternalError) for about 1 s",
    "reset": "no answer from S3 at http://127",
    "hang": "(refused, dropped or timed out; tried for up to 1 s)",
}

REFUSED = {
    "NoSuchBucket": "there is no bucket",
    "InvalidAccessKeyId": "the access key is unknown",
    "SignatureDoesNotMatch": "the secret key isn't the access key's",
    "AccessDenied": "s3:PutObject",
    "ExpiredToken": "the session token has expired; get new credentials",
    "InvalidToken": "the session token isn't valid",
    "RequestTimeTooSkewed": "this machine's clock is 1 h 5 min ahead of S3's",
    "PermanentRedirect": "set storage.region to the bucket's own",
    "AuthorizationHeaderMalformed": "set storage.region to the bucket's own",
}

both = pytest.mark.parametrize("act", [by_lance, by_s3fs])


def told(act: Callable[..., None], uri: str, storage: StorageSettings) -> str:
    try:
        act(uri, storage)
    except Exception as error:
        refused = error
    line = explain(refused, uri, storage)
    assert line is not None, repr(refused)
    assert line.startswith(f"{uri}: ")
    for text in (line, without_secrets(str(refused))):
        assert not any(secret in text for secret in SECRETS)
    assert "\n" not in line
    return line


@both
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the access key is unknown at http://127"),
        ({"AWS_SECRET_ACCESS_KEY": "wrongwrong"}, "the secret key isn't the access key's"),
        ({"AWS_ACCESS_KEY_ID": "reader"}, "these credentials may not do that"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials found for S3"),
    ],
)
def test_wrong_credentials_are_told_apart(
    weed_s3: S3Place,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[..., None],
    environment: dict[str, str | None],
    expected: str,
) -> None:
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    PatientS3FileSystem.clear_instance_cache()
    assert expected in told(act, f"{weed_s3.uri}/docs.lance", weed_s3.storage)


@both
def test_a_missing_bucket_is_named(s3: S3Place, act: Callable[..., None]) -> None:
    line = told(act, "s3://nobucket/docs.lance", s3.storage)
    assert f"there is no bucket 'nobucket' at {s3.endpoint_url}; check its name" in line


def test_what_s3_refuses_is_told_in_one_line_without_its_secrets(s3: S3Place) -> None:
    def refused(code: str, act: Callable[..., None]) -> str:
        with FaultProxy(s3.endpoint_url) as proxy:
            proxy.inject("refuse", code=code)
            return told(act, f"{s3.uri}/docs.lance", through(s3, proxy))

    with ThreadPoolExecutor(16) as pool:
        going = {
            (code, act): pool.submit(refused, code, act)
            for code in REFUSED
            for act in (by_lance, by_s3fs)
            # This one botocore follows by itself, asking for the bucket's region.
            if (code, act) != ("PermanentRedirect", by_s3fs)
        }
        for (code, _), line in going.items():
            assert REFUSED[code] in line.result()


def test_a_dead_store_is_told_in_one_line_by_s3fs(s3: S3Place, s3_proxy: FaultProxy) -> None:
    hasty = through(s3, s3_proxy, retry_seconds=1)
    for kind, expected in DEAD.items():
        s3_proxy.inject(kind)
        assert expected in told(by_s3fs, f"{s3.uri}/docs.lance", hasty)
        s3_proxy.clear()


@pytest.mark.slow
def test_a_dead_store_is_told_in_one_line_by_lance(s3: S3Place) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(len(DEAD)) as pool:
        going = {}
        for kind, expected in DEAD.items():
            proxy = stack.enter_context(FaultProxy(s3.endpoint_url))
            proxy.inject(kind)
            storage = through(s3, proxy, retry_seconds=1)
            going[expected] = pool.submit(told, by_lance, f"{s3.uri}/docs.lance", storage)
        for expected, line in going.items():
            assert expected in line.result()


def test_an_endpoint_where_nothing_listens_is_named(s3: S3Place) -> None:
    away = dataclasses.replace(s3.storage, endpoint_url="http://127.0.0.1:9", retry_seconds=1)
    with pytest.raises(TableError, match=r"no answer from S3 at http://127\.0\.0\.1:9"):
        check_store(f"{s3.uri}/docs.lance", away)
    tls = dataclasses.replace(away, endpoint_url=s3.endpoint_url.replace("http:", "https:"))
    with pytest.raises(TableError, match="no TLS connection to S3 at https://127"):
        check_store(f"{s3.uri}/docs.lance", tls)


def test_a_real_server_refuses_a_clock_that_is_off(
    weed_s3: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = botocore.auth.get_current_datetime
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda **how: real(**how) + timedelta(hours=2)
    )
    with pytest.raises(TableError, match="clock was off from S3's by too much; set it right"):
        check_store(f"{weed_s3.uri}/docs.lance", weed_s3.storage)


def test_bugs_and_missing_objects_are_not_explained_away(s3: S3Place) -> None:
    with pytest.raises(ZeroDivisionError), storage_errors(s3.uri, s3.storage):
        _ = 1 / 0
    store, path = filesystem(f"{s3.uri}/nothing", s3.storage)
    with pytest.raises(FileNotFoundError), storage_errors(s3.uri, s3.storage):
        store.cat_file(path)
    with (
        pytest.raises(CorpusError, match=r"^s3://nobucket/a: there is no bucket"),
        storage_errors("s3://nobucket/a", s3.storage, CorpusError),
    ):
        store.find("nobucket/a")


@pytest.mark.parametrize("server", ["s3", "weed_s3"])
def test_a_store_with_conditional_puts_passes_and_nothing_stays(
    request: pytest.FixtureRequest, server: str
) -> None:
    place: S3Place = request.getfixturevalue(server)
    check_store(f"{place.uri}/db/docs.lance", place.storage)
    assert filesystem(place.uri, place.storage)[0].find(place.bucket) == []


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_without_conditional_puts_is_refused(
    s3: S3Place, s3_proxy: FaultProxy, s3_fs: Any, header: str
) -> None:
    s3_proxy.inject("strip", header=header)
    with pytest.raises(TableError, match=f"doesn't heed {header}, so that two writers could lose"):
        check_store(f"{s3.uri}/docs.lance", through(s3, s3_proxy))
    assert s3_fs.find(s3.bucket) == []


def test_a_store_that_knows_no_such_header_is_refused(s3: S3Place, s3_proxy: FaultProxy) -> None:
    s3_proxy.inject("refuse", code="NotImplemented", match="PUT")
    with pytest.raises(TableError, match="doesn't heed If-None-Match and If-Match"):
        check_store(f"{s3.uri}/docs.lance", through(s3, s3_proxy))


def test_the_probe_bears_an_answer_that_is_lost(s3: S3Place, s3_proxy: FaultProxy) -> None:
    s3_proxy.inject("lose", times=1, match="PUT")
    check_store(f"{s3.uri}/docs.lance", through(s3, s3_proxy))
    s3_proxy.inject("refuse", code="ConditionalRequestConflict", times=1, match="PUT")
    check_store(f"{s3.uri}/docs.lance", through(s3, s3_proxy))


def test_a_missing_bucket_is_found_by_the_probe_and_not_made(weed_s3: S3Place) -> None:
    with pytest.raises(TableError, match="there is no bucket 'nobucket'"):
        check_store("s3://nobucket/docs.lance", weed_s3.storage)


def test_a_folder_must_be_writable(tmp_path: Path) -> None:
    check_store(f"{tmp_path}/new/docs.lance", StorageSettings())
    (tmp_path / "file").touch()
    with pytest.raises(TableError, match="its folder can't be written"):
        check_store(f"{tmp_path}/file/docs.lance", StorageSettings())


def test_a_table_lives_on_a_disk_or_on_s3() -> None:
    with pytest.raises(SettingsError, match="expected a path on a local or shared disk, or s3"):
        check_store("gs://bucket/docs.lance", StorageSettings())
