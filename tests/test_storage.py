"""Files of any storage by URI."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from stella_ray.errors import SettingsError
from stella_ray.storage import StorageSettings, absolute, filesystem, read_json, write_json

HERE = StorageSettings()


def test_local_paths_become_absolute_and_uris_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("a/b c") == "/tmp/a/b c"
    assert absolute("~/a") == "/home/me/a"
    assert absolute("/a") == "/a"
    assert absolute("s3://bucket/a b") == "s3://bucket/a b"


@pytest.mark.parametrize("uri", ["nosuch://x/y", "abfs://x/y"])
def test_a_storage_that_can_t_be_read_is_named_in_one_line(uri: str) -> None:
    with pytest.raises(SettingsError, match=f"^{uri}: this storage can't be read") as caught:
        filesystem(uri, HERE)
    assert "\n" not in str(caught.value)


def test_json_is_written_into_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "runs/1/report.json"
    write_json(str(path), {"名": [1, None]}, HERE)
    assert json.loads(path.read_text("utf-8")) == {"名": [1, None]}
    assert "名" in path.read_text("utf-8")


def test_json_goes_to_other_storages_too() -> None:
    write_json("memory://stella-test/report.json", {"a": 1}, HERE)
    store = fsspec.filesystem("memory")
    assert json.loads(store.cat_file("/stella-test/report.json")) == {"a": 1}


def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(str(path), {"run": 1}, HERE)
    with pytest.raises(TypeError):
        write_json(str(path), {"run": object()}, HERE)
    assert json.loads(path.read_text("utf-8")) == {"run": 1}
    write_json(str(path), {"run": 2}, HERE)
    assert json.loads(path.read_text("utf-8")) == {"run": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_never_written_reads_as_none(tmp_path: Path) -> None:
    assert read_json(str(tmp_path / "no.json"), HERE) is None
    write_json(str(tmp_path / "yes.json"), [1], HERE)
    assert read_json(str(tmp_path / "yes.json"), HERE) == [1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"retry_seconds": 0}, "storage.retry_seconds 0 is too small"),
        ({"timeout_seconds": 0}, "storage.timeout_seconds 0 is too small"),
        ({"endpoint_url": "localhost:9000"}, "isn't an address; expected http://HOST:PORT"),
        ({"endpoint_url": "http://me:secret@host"}, "holds credentials; leave them out"),
    ],
)
def test_settings_that_can_t_hold_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        StorageSettings(**settings)
    assert "secret" not in str(caught.value)


def test_credentials_in_a_uri_are_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="credentials in a URI end up in logs") as caught:
        filesystem("s3://AKIAKEYID:verysecret@bucket/docs", HERE)
    assert "verysecret" not in str(caught.value)


def test_environment_and_profile_fill_in_what_no_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text("[profile mine]\nendpoint_url = http://profile:1\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert HERE.resolved() == HERE
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert HERE.resolved().endpoint_url == "http://profile:1"
    assert HERE.resolved().region == "eu-west-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://environment:1")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert HERE.resolved().endpoint_url == "http://environment:1"
    assert HERE.resolved().region == "eu-west-2"
    assert StorageSettings(endpoint_url="http://set:1").resolved().endpoint_url == "http://set:1"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SettingsError, match=r"nobody.*check AWS_PROFILE"):
        HERE.resolved()


def test_buckets_are_named_in_the_path_at_an_endpoint_and_in_the_host_at_aws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    own = StorageSettings(endpoint_url="https://s3.example.com")
    assert own.for_lance()["virtual_hosted_style_request"] == "false"
    assert own.for_fsspec()["config_kwargs"]["s3"] == {"addressing_style": "path"}
    aws = StorageSettings(region="eu-west-1")
    assert aws.for_lance()["virtual_hosted_style_request"] == "true"
    assert aws.for_fsspec()["config_kwargs"]["s3"] == {"addressing_style": "virtual"}
