"""Files of any storage by URI."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from stella_ray.errors import SettingsError
from stella_ray.storage import absolute, filesystem, write_json


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
        filesystem(uri)
    assert "\n" not in str(caught.value)


def test_json_is_written_into_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "runs/1/report.json"
    write_json(str(path), {"名": [1, None]})
    assert json.loads(path.read_text("utf-8")) == {"名": [1, None]}
    assert "名" in path.read_text("utf-8")


def test_json_goes_to_other_storages_too() -> None:
    write_json("memory://stella-test/report.json", {"a": 1})
    store = fsspec.filesystem("memory")
    assert json.loads(store.cat_file("/stella-test/report.json")) == {"a": 1}


def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(str(path), {"run": 1})
    with pytest.raises(TypeError):
        write_json(str(path), {"run": object()})
    assert json.loads(path.read_text("utf-8")) == {"run": 1}
    write_json(str(path), {"run": 2})
    assert json.loads(path.read_text("utf-8")) == {"run": 2}
    assert list(tmp_path.iterdir()) == [path]
