"""Nights on which no shard changed read nothing; anything else is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stella_ray.pipeline import stamps
from stella_ray.pipeline.corpus import find_shards
from stella_ray.pipeline.report import RunReport
from stella_ray.pipeline.stamps import stamp_of
from stella_ray.pipeline.unchanged import digest_of, nothing_new, remember
from stella_ray.storage import write_json
from stella_ray.table.publish import rollback
from stella_ray.table.vectors import VectorTable, table_uri
from tests.jobs.conftest import Desk, Evening, documents, rows_of, text


@pytest.fixture(autouse=True)
def shards_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", -1.0)


def counts(report: RunReport) -> dict[str, Any]:
    names = ("rows_read", "embedded", "unchanged", "repeated", "deleted", "version", "outcome")
    return {name: getattr(report, name) for name in (*names, "table_documents", "table_rows")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_night_without_changed_shards_reads_nothing_and_the_next_change_is_seen(
    desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    rows = documents(12)
    shard = write_jsonl(desk.corpus / "a.jsonl", [*rows, rows[3]])
    first = desk.embed()
    second = desk.embed()
    assert (first.pool != "", second.pool) == (True, "")  # no cluster was asked for anything
    unchanged = {"embedded": 0, "unchanged": 12}
    assert counts(second) == counts(first) | unchanged
    assert (second.rows_read, second.repeated) == (13, 1)
    # The same number of bytes, at a time that is put back to what it was.
    there, before = shard.read_text("utf-8"), shard.stat()
    new = text(500, len(rows[5]["text"]))
    shard.write_text(there.replace(rows[5]["text"], new), "utf-8")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    third = desk.embed()
    assert (third.embedded, third.unchanged, third.replaced) == (1, 11, 1)
    assert rows_of(desk.table)["d5"]["text"] == new


def listed(folder: Path) -> str | None:
    return digest_of(find_shards([str(folder)]), {"long": "truncate"})


def test_any_change_of_a_shard_and_of_what_rows_depend_on_changes_the_digest(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    shard = write_jsonl(tmp_path / "a.jsonl", documents(3))
    right = listed(tmp_path)
    assert right == listed(tmp_path) is not None
    assert right != digest_of(find_shards([str(tmp_path)]), {"long": "chunk"})
    other = tmp_path / "b.jsonl"
    other.write_bytes(shard.read_bytes())
    both = listed(tmp_path)
    assert both != right
    other.replace(shard)  # equal bytes, but how should a listing know
    assert listed(tmp_path) not in (right, both)


def test_a_shard_that_has_just_been_written_may_change_again_unseen(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", documents(3))
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 2.0)
    assert listed(tmp_path) is None


def test_a_store_that_says_nothing_of_its_files_has_no_stamps() -> None:
    assert stamp_of({"name": "x", "size": 3}) is None
    assert stamp_of({"name": "x", "size": 3, "ETag": '"abc"'}) == '"abc"'


@pytest.mark.ray
@pytest.mark.slow
def test_only_the_live_and_newest_version_of_the_same_shards_counts(
    evening: Evening, published_desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    desk, report = published_desk, evening.report
    uri = table_uri(str(desk.table))
    table = VectorTable.open(uri)

    def short(digest: str | None = "d") -> bool:
        return nothing_new(VectorTable.open(uri), digest, RunReport("r", uri, {}, {}))

    remember(table, "d", report)
    assert short()
    assert not short("another")
    assert not short(None)
    note = Path(f"{desk.table}.seen.json")
    for damaged in ("", "[]", '{"digest": 3}'):
        note.write_text(damaged)
        assert not short()
    for name, value in {"rejected": 1, "bad_shards": 1, "outcome": "unfinished"}.items():
        write_json(str(note), {})
        remember(table, "d", RunReport("r", uri, {}, {}, **{"outcome": "published", name: value}))
        assert not short()
    remember(table, "d", report)
    assert short()
    write_jsonl(desk.corpus / "a.jsonl", documents(11))
    desk.embed()
    write_json(str(note), {"digest": "d", **{n: 1 for n in ("rows_read", "repeated")}, "version": 1,
                           "table_documents": 1, "table_rows": 1})  # fmt: skip
    assert not short()  # a version that is neither
    remember(VectorTable.open(uri), "d", desk.embed(reread=True))
    assert short()
    rollback(uri)
    assert not short()
