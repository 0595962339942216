"""One shard corrupt among many: the run fails, or goes on without it and forgets nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_ray.errors import BadShard, CorpusError
from tests.jobs.conftest import Desk, documents, rows_of

pytestmark = pytest.mark.ray


def write_shards(desk: Desk, count: int = 4) -> list[dict[str, Any]]:
    """Shards of ten documents each, p0.parquet to p3.parquet."""
    rows = documents(10 * count)
    desk.corpus.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        part = pa.Table.from_pylist(rows[i * 10 : i * 10 + 10])
        pq.write_table(part, desk.corpus / f"p{i}.parquet")
    return rows


def damage(path: Path) -> None:
    """Overwrite a shard's middle, footer and all but its length."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, local_ray: None) -> Desk:
    """Four shards, published."""
    home = tmp_path_factory.mktemp("whole")
    desk = Desk(home / "corpus", home / "db/docs", tiny_encoder)
    write_shards(desk)
    desk.embed()
    return desk


def rejects_of(report: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(report.rejects).read_text("utf-8").splitlines()]


def test_a_bad_shard_fails_the_run_by_name_and_nothing_moves(whole: Desk, tmp_path: Path) -> None:
    desk = whole.copy(tmp_path)
    damage(desk.corpus / "p2.parquet")
    with pytest.raises(BadShard, match=r"p2\.parquet: can't be read as parquet"):
        desk.embed()
    assert len(rows_of(desk.table)) == 40


def test_a_rejected_shard_is_named_and_its_documents_of_last_night_stay(
    whole: Desk, tmp_path: Path
) -> None:
    desk, rows = whole.copy(tmp_path), documents(40)
    damage(desk.corpus / "p2.parquet")
    # Meanwhile a document of another shard changed, and one vanished.
    changed = {**rows[0], "text": "改了"}
    pq.write_table(pa.Table.from_pylist([changed, *rows[2:10]]), desk.corpus / "p0.parquet")

    report = desk.embed(on_bad_shard="reject")
    (reject,) = rejects_of(report)
    assert (Path(reject["shard"]).name, reject["row"], reject["id"]) == ("p2.parquet", -1, None)
    assert "the shard is bad" in reject["reason"]
    assert (report.bad_shards, report.rows_read, report.rejected) == (1, 29, 0)
    assert (report.embedded, report.unchanged, report.kept_unseen) == (1, 28, 11)
    assert (report.deleted, report.replaced, report.table_documents) == (0, 1, 40)
    assert "1 bad shards were passed over, so nothing was deleted" in str(report)
    there = rows_of(desk.table)
    assert there.keys() == {row["id"] for row in rows}
    assert there["d0"]["text"] == "改了"

    # The shard is whole again: now the vanished document goes.
    pq.write_table(pa.Table.from_pylist(rows[20:30]), desk.corpus / "p2.parquet")
    mended = desk.embed(on_bad_shard="reject")
    assert (mended.embedded, mended.unchanged, mended.deleted) == (0, 39, 1)
    assert rows_of(desk.table).keys() == {row["id"] for row in rows} - {"d1"}


def test_the_first_shard_may_be_bad_and_what_a_shard_holds_before_its_damage_is_kept(
    desk: Desk,
) -> None:
    write_shards(desk)
    damage(desk.corpus / "p0.parquet")
    with pytest.raises(BadShard, match=r"p0\.parquet"):
        desk.embed()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents(3_000, 40))
    cut = gzip.compress(lines.encode())
    (desk.corpus / "z.jsonl.gz").write_bytes(cut[: len(cut) * 3 // 4])
    report = desk.embed(on_bad_shard="reject", keep_columns=["title"])
    first, last = sorted(rejects_of(report), key=lambda one: one["shard"])
    assert [Path(one["shard"]).name for one in (first, last)] == ["p0.parquet", "z.jsonl.gz"]
    read = report.rows_read - 30
    assert 0 < read < 3_000
    assert f"its first {read:,} rows were read" in last["reason"]
    assert rows_of(desk.table).keys() == {f"d{i}" for i in range(10, 40 + read)}


def test_a_column_that_no_shard_has_is_no_fault_of_the_shards(desk: Desk) -> None:
    write_shards(desk)
    with pytest.raises(CorpusError, match=r"no column .*body"):
        desk.embed(on_bad_shard="reject", text_column="body")
