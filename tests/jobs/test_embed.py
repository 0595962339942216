"""The embedding job over real shards, a real Ray, a real table."""

from __future__ import annotations

import csv
import gzip
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

from jobs.embed import run
from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun, ModelMismatch, TableError
from stella_ray.table.publish import rollback
from tests.conftest import write_rows
from tests.jobs.conftest import Desk, Evening, documents, rows_of, text

pytestmark = pytest.mark.ray


def adds_up(report: Any) -> bool:
    total = report.embedded + report.unchanged + report.rejected + report.repeated
    return bool(
        report.rows_read == total and report.table_rows == report.embedded + report.unchanged
    )


TITLED = [*documents(150), {"id": "long", "text": text(5, 3_000), "title": None}]


@pytest.fixture(scope="module")
def titled(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, local_ray: None
) -> Evening:
    """`TITLED` in two shards, published."""
    home = tmp_path_factory.mktemp("titled")
    desk = Desk(home / "corpus", home / "db/docs", tiny_encoder)
    write_rows(desk.corpus / "a.jsonl", TITLED[:70])
    write_rows(desk.corpus / "b.jsonl", TITLED[70:])
    return Evening(desk, desk.embed(keep_columns=["title"]))


def test_every_vector_is_the_one_of_its_own_text(titled: Evening) -> None:
    desk, report = titled.desk, titled.report
    assert adds_up(report)
    assert report.embedded == 151
    assert report.truncated == 1
    assert report.outcome == "published"
    live = rows_of(desk.table)
    encoder = Encoder(str(desk.encoder))
    ids = list(live)
    texts = {row["id"]: row["text"] for row in TITLED}
    expected = encoder.embed([texts[i] for i in ids])
    found = np.array([live[i]["vector"] for i in ids], np.float32)
    assert (found * expected).sum(1).min() >= 0.9999
    assert live["long"]["truncated"] is True
    assert live["long"]["n_tokens"] == 1_024
    assert live["d7"]["title"] == "题7"
    assert live["d7"]["text"] == texts["d7"]
    assert {row["run_id"] for row in live.values()} == {report.run_id}


def test_a_second_run_writes_nothing(published_desk: Desk) -> None:
    versions = len(lance.dataset(f"{published_desk.table}.lance").versions())
    report = published_desk.embed()
    assert (report.embedded, report.unchanged, report.tokens) == (0, 12, 0)
    assert report.live_before == report.version
    assert len(lance.dataset(f"{published_desk.table}.lance").versions()) == versions
    assert adds_up(report)


def test_mutations_between_two_runs_embed_exactly_the_new_and_changed_texts(
    titled: Evening, tmp_path: Path
) -> None:
    desk, first = titled.desk.copy(tmp_path), titled.report
    before = rows_of(desk.table)
    rows = [dict(row) for row in TITLED]

    # Edited, deleted, added, only a title changed, shards renamed, reordered, in other formats.
    rows[3]["text"] = "改了的文字"
    rows[40]["title"] = "新题"
    del rows[50:55]
    rows += documents(4, first=200)
    rows.reverse()
    for old in desk.corpus.iterdir():
        old.unlink()
    pq.write_table(pa.Table.from_pylist(rows[:20]), desk.corpus / "x.parquet")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[20:40])
    (desk.corpus / "y.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with (desk.corpus / "z.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["title", "id", "text"])
        writer.writeheader()
        writer.writerows(rows[40:])
    report = desk.embed(keep_columns=["title"])

    assert adds_up(report)
    assert (report.embedded, report.unchanged, report.refreshed) == (5, 145, 1)
    assert (report.deleted, report.replaced) == (5, 2)
    live = rows_of(desk.table)
    assert {i: row["text"] for i, row in live.items()} == {row["id"]: row["text"] for row in rows}
    assert live["d40"]["title"] == "新题"
    assert live["d40"]["vector"] == before["d40"]["vector"]
    assert live["d40"]["n_tokens"] == before["d40"]["n_tokens"]
    kept = {i for i, row in live.items() if row["run_id"] == first.run_id}
    assert kept == {row["id"] for row in rows} - {"d3", "d40", "d200", "d201", "d202", "d203"}
    # The night before is still there for readers of the old version and for a rollback.
    rollback(f"{desk.table}.lance")
    assert rows_of(desk.table) == before


def test_rejects_fail_the_run_or_are_listed_and_the_rest_is_published(
    desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    """Of an id with two texts the first row is kept; what can't be embedded says why. The run that
    fails leaves its report, and a later one goes on from what it did."""
    rows = documents(10)
    write_jsonl(desk.corpus / "a.jsonl", [*rows, {**rows[2], "text": "另一个"}])
    write_jsonl(desk.corpus / "b.jsonl", [rows[4], {**rows[2], "text": "第三个"}, rows[2]])
    bad: list[dict[str, Any]] = [{"id": "n", "text": None}, {"id": "e", "text": ""}]
    bad += [{"id": "b", "text": " \u3000\n"}, {"id": None, "text": "甲"}]
    write_jsonl(desk.corpus / "c.jsonl", bad)
    with pytest.raises(IncompleteRun, match=r"6 of 18 rows were rejected.*rejects\.jsonl"):
        desk.embed()
    assert lance.dataset(f"{desk.table}.lance").tags.list() == {}
    (folder,) = (desk.table.parent / "runs").iterdir()
    failed = json.loads((folder / "report.json").read_text())
    assert failed["outcome"].startswith("IncompleteRun")
    assert (failed["embedded"], failed["rejected"]) == (10, 6)
    assert failed["outcome"] in html.unescape((folder / "report.html").read_text())

    report = desk.embed(max_reject_fraction=0.5)
    assert adds_up(report)
    assert (report.embedded, report.unchanged) == (0, 10)
    assert (report.rejected, report.repeated, report.table_rows) == (6, 2, 10)
    page = folder.parent / report.run_id / "report.html"
    assert "This night against the last 1<" in page.read_text()
    assert rows_of(desk.table)["d2"]["text"] == rows[2]["text"]
    rejects = [json.loads(line) for line in Path(report.rejects or "").read_text().splitlines()]
    assert len(rejects) == 6
    told = {(Path(r["shard"]).name, r["row"], r["id"]): r["reason"] for r in rejects}
    second = [told.pop(("a.jsonl", 10, "d2")), told.pop(("b.jsonl", 1, "d2"))]
    assert all("different text" in reason for reason in second)
    assert told == {
        ("c.jsonl", 0, "n"): "the text is null",
        ("c.jsonl", 1, "e"): "the text is empty",
        ("c.jsonl", 2, "b"): "the text is blank",
        ("c.jsonl", 3, None): "the id is missing",
    }


def test_ids_may_hold_anything_and_equal_texts_of_a_window_are_encoded_once(
    desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    ids = [
        "it's",
        'say "hi"',
        "two\nlines",
        "😀",
        "长" * 4_096,
        "; DROP TABLE docs",
        "\\",
        " ",
        "null",
    ]
    write_jsonl(desk.corpus / "a.jsonl", [{"id": i, "text": text(n)} for n, i in enumerate(ids)])
    write_jsonl(
        desk.corpus / "b.jsonl", [{"id": 7, "text": "整数"}, {"id": 2**60, "text": "大整数"}]
    )
    write_jsonl(desk.corpus / "c.jsonl", [{"id": f"e{i}", "text": "同一段文字"} for i in range(50)])
    equal = {f"e{i}" for i in range(50)}
    report = desk.embed()
    live = rows_of(desk.table)
    assert set(live) == {*ids, "7", str(2**60), *equal}
    assert report.embedded == len(live)
    others = sum(row["n_tokens"] for doc_id, row in live.items() if doc_id not in equal)
    assert report.tokens == others + live["e0"]["n_tokens"]
    assert desk.embed().embedded == 0


def test_a_run_that_would_empty_the_table_is_refused_and_readers_keep_what_they_have(
    evening: Evening, published_desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    desk = published_desk
    write_jsonl(desk.corpus / "a.jsonl", documents(6, first=5))
    with pytest.raises(IncompleteRun, match=r"6 of the table's 12 .*max_delete_fraction"):
        desk.embed()
    assert len(rows_of(desk.table)) == 12
    live = lance.dataset(f"{desk.table}.lance").tags.list()["live"]
    assert live["version"] == evening.report.version
    report = desk.embed(max_delete_fraction=0.5)
    assert (report.embedded, report.unchanged, report.deleted) == (0, 6, 6)
    assert len(rows_of(desk.table)) == 6


def test_another_encoder_is_refused_and_a_rebuild_takes_it_while_the_old_version_serves(
    published_desk: Desk, other_encoder: Path, write_jsonl: Callable[..., Path]
) -> None:
    desk = published_desk
    before = rows_of(desk.table)
    other = {"encoder": EncoderSettings(path=str(other_encoder))}
    with pytest.raises(
        ModelMismatch, match=rf"{desk.encoder}.*{other_encoder}.*weights.*--rebuild"
    ):
        desk.embed(**other)

    write_jsonl(desk.corpus / "b.jsonl", [{"id": "bad", "text": None}])
    told = desk.table.parent / "unfinished.json"
    with pytest.raises(IncompleteRun):
        desk.embed(**other, rebuild=True, report=str(told))
    assert json.loads(told.read_text())["embedded"] == 12
    assert rows_of(desk.table) == before
    (desk.corpus / "b.jsonl").unlink()
    report = desk.embed(**other, rebuild=True)
    assert (report.embedded, report.unchanged) == (0, 12)  # what the dead rebuild had done counts
    assert (report.outcome, report.table_rows) == ("published", 12)
    assert rows_of(desk.table)["d3"]["vector"] != before["d3"]["vector"]
    assert rows_of(desk.table, "live-previous") == before


def test_other_columns_are_refused_with_the_way_out_and_a_table_is_thin_when_asked(
    published_desk: Desk,
) -> None:
    desk = published_desk
    with pytest.raises(TableError, match=r"title.*--keep_columns.*--rebuild"):
        desk.embed(keep_columns=["title"])
    thin: dict[str, Any] = {"store_text": False, "vector_type": "float16"}
    assert desk.embed(**thin, keep_columns=["title"], rebuild=True).table_rows == 12
    table = lancedb.connect(desk.table.parent).open_table("docs")
    table.checkout("live")
    numbers = ["n_tokens", "truncated", "row_key", "run_id"]
    assert table.schema.names == ["doc_id", "title", "vector", *numbers]
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 32)
    assert not table.schema.field("doc_id").nullable
    expected = Encoder(str(desk.encoder)).embed([text(3, 5 + 21 % 60)])[0]
    found = np.array(rows_of(desk.table)["d3"]["vector"], np.float32)
    assert float(found @ expected) >= 0.999
    assert desk.embed(**thin, keep_columns=["title"]).embedded == 0


def test_the_report_is_beside_the_table_and_where_it_was_asked_for(evening: Evening) -> None:
    desk = evening.desk
    beside = desk.table.parent / "runs" / evening.report.run_id / "report.json"
    saved = json.loads(beside.read_text())
    assert saved == json.loads((desk.corpus.parent / "out/report.json").read_text())
    assert saved["outcome"] == "published"
    assert saved["embedded"] == 12
    assert saved["tokens"] <= saved["padded_tokens"]
    assert saved["tokens"] == sum(row["n_tokens"] for row in rows_of(desk.table).values())
    assert {"embed", "encode", "write", "commit", "gate", "total"} <= set(saved["seconds"])
    assert saved["versions"]["ray"]
    assert saved["settings"]["encoder"]["path"] == str(desk.encoder)


def test_a_ray_dataset_can_be_the_corpus(desk: Desk) -> None:
    rows = [{"key": i, "body": text(i), "title": f"题{i}", "year": 2000 + i} for i in range(30)]
    rows += [{"key": 3, "body": "另一个", "title": "题", "year": 1}, {**rows[5]}]
    job = desk.job(
        doc_id_column="key", text_column="body", keep_columns=["title", "year"],
        max_reject_fraction=0.5, encoder=EncoderSettings(path=str(desk.encoder)),
    )  # fmt: skip
    report = run(job, ray.data.from_items(rows, override_num_blocks=3))
    assert adds_up(report)
    assert (report.embedded, report.rejected, report.repeated) == (30, 1, 1)
    live = rows_of(desk.table)
    assert set(live) == {str(i) for i in range(30)}
    assert live["7"]["year"] == 2007
    assert run(job, ray.data.from_items(rows[::-1])).embedded <= 1  # id 3 has no first row here
