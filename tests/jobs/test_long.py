"""Documents longer than the encoder sees, as several rows each: night after night."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from jobs.embed import run
from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError, TableError
from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.pipeline.report import RunReport
from tests.conftest import HAN, write_rows
from tests.jobs.conftest import Desk

pytestmark = pytest.mark.ray

MAX_TOKENS = 48


def long_text(number: int, sentences: int) -> str:
    """Sentences of 9 to 20 characters, different ones for each number."""
    return "".join(
        "".join(HAN[(number * 131 + s * 17 + i * 7) % len(HAN)] for i in range(9 + (s * 5) % 12))
        + "。！？\n"[s % 4]
        for s in range(sentences)
    )


def documents(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"d{i}", "text": long_text(i, 1 + i * 3 % 23), "title": f"题{i}"}
        for i in range(count)
    ]


class LongDesk:
    """A desk whose runs make rows of windows of 48 tokens."""

    def __init__(self, desk: Desk, write_jsonl: Callable[..., Path]) -> None:
        self.desk, self.write = desk, write_jsonl

    def night(self, rows: list[dict[str, Any]], **settings: Any) -> RunReport:
        """Embed these documents; the table must then hold each one whole, and nothing else."""
        self.write(self.desk.corpus / "a.jsonl", rows)
        encoder = EncoderSettings(path=str(self.desk.encoder), max_tokens=MAX_TOKENS)
        usual = {"long": "chunk", "chunk_overlap": 8, "keep_columns": ["title"]}
        pool = PoolSettings(window_rows=16, rows_per_commit=20)
        report = run(self.desk.job(encoder=encoder, pool=pool, **(usual | settings)))
        self.check({row["id"]: row for row in rows})
        assert report.rows_read == (
            report.embedded + report.unchanged + report.rejected + report.repeated
        )
        assert report.table_documents == len({row["id"] for row in rows})
        return report

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            lance.dataset(f"{self.desk.table}.lance", version="live").to_table().to_pylist()
        )
        return sorted(found, key=lambda row: (row["doc_id"], row["chunk"]))

    def check(self, corpus: dict[str, dict[str, Any]]) -> None:
        chunks: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows():
            source = corpus[row["doc_id"]]
            assert row["text"] == source["text"][row["chunk_start"] : row["chunk_end"]]
            assert row["title"] == source["title"]
            assert row["n_tokens"] <= MAX_TOKENS
            assert not row["truncated"]
            chunks.setdefault(row["doc_id"], []).append(row)
        assert chunks.keys() == corpus.keys()
        for doc_id, rows in chunks.items():
            assert [row["chunk"] for row in rows] == list(range(len(rows)))
            assert {row["chunks"] for row in rows} == {len(rows)}
            assert rows[0]["chunk_start"] == 0
            assert rows[-1]["chunk_end"] == len(corpus[doc_id]["text"])
            for before, after in itertools.pairwise(rows):
                assert before["chunk_start"] < after["chunk_start"] <= before["chunk_end"]


@pytest.fixture
def long_desk(desk: Desk, write_jsonl: Callable[..., Path]) -> LongDesk:
    return LongDesk(desk, write_jsonl)


@pytest.fixture(scope="module")
def first_night(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, local_ray: None
) -> tuple[LongDesk, RunReport]:
    """Twenty documents, published, and what the run said; for reading alone."""
    home = tmp_path_factory.mktemp("long")
    desk = LongDesk(Desk(home / "corpus", home / "db/docs", tiny_encoder), write_rows)
    return desk, desk.night(documents(20))


@pytest.fixture
def second_desk(first_night: tuple[LongDesk, RunReport], tmp_path: Path) -> LongDesk:
    """The twenty documents as they were published, for one test to change."""
    return LongDesk(first_night[0].desk.copy(tmp_path), write_rows)


def test_each_chunks_vector_is_that_of_its_own_text(
    first_night: tuple[LongDesk, RunReport],
) -> None:
    long_desk, report = first_night
    rows = long_desk.rows()
    assert report.table_rows == len(rows) > 20
    assert report.truncated == 0
    encoder = Encoder(EncoderSettings(path=str(long_desk.desk.encoder), max_tokens=MAX_TOKENS))
    anew = encoder.embed([row["text"] for row in rows])
    stored = np.array([row["vector"] for row in rows], np.float32)
    assert ((anew * stored).sum(1) > 0.9999).all()


def test_an_edited_document_replaces_its_chunks_and_one_that_lacks_some_is_embedded_anew(
    second_desk: LongDesk,
) -> None:
    """Some are missing where a run was killed between two of a document's blocks."""
    long_desk, rows = second_desk, documents(20)
    again = long_desk.night(rows)
    assert (again.embedded, again.unchanged) == (0, 20)

    rows[7] = {**rows[7], "text": long_text(77, 3)}  # shorter
    rows[8] = {**rows[8], "text": rows[8]["text"] + long_text(88, 9)}  # longer
    rows[9] = {**rows[9], "title": "新题"}
    del rows[3]
    vectors = {(r["doc_id"], r["chunk"]): r["vector"] for r in long_desk.rows()}
    dataset = lance.dataset(f"{long_desk.desk.table}.lance")
    dataset.delete("doc_id = 'd17' AND chunk > 0 OR doc_id = 'd16' AND chunk = 0")
    third = long_desk.night(rows)
    assert (third.embedded, third.unchanged, third.refreshed) == (4, 15, 1)
    assert (third.deleted, third.replaced) == (1, 3)
    kept = {(r["doc_id"], r["chunk"]): r["vector"] for r in long_desk.rows()}
    assert [v for k, v in kept.items() if k[0] == "d9"] == [
        v for k, v in vectors.items() if k[0] == "d9"
    ]


def test_a_repeated_row_and_a_doubled_id_leave_one_whole_document(long_desk: LongDesk) -> None:
    rows = documents(8)
    long_desk.write(long_desk.desk.corpus / "b.jsonl", [rows[7], {**rows[5], "text": "另。" * 60}])
    report = long_desk.night(rows, max_reject_fraction=0.5)
    assert (report.embedded, report.repeated, report.rejected) == (8, 1, 1)
    again = long_desk.night(rows, max_reject_fraction=0.5)
    assert (again.embedded, again.unchanged, again.repeated) == (0, 8, 1)
    assert again.rejected == 1


def test_other_chunks_are_another_table(second_desk: LongDesk) -> None:
    long_desk = second_desk
    with pytest.raises(TableError, match="use the same --long and --chunk_overlap, or --rebuild"):
        long_desk.night(documents(20), chunk_overlap=6)
    with pytest.raises(TableError, match=r"use the same .* --long, or --rebuild"):
        long_desk.night(documents(20), long="truncate")
    with pytest.raises(SettingsError, match="chunk_overlap 13 is more than a quarter of max_tok"):
        long_desk.night(documents(20), chunk_overlap=13)
    rebuilt = long_desk.night(documents(20), chunk_overlap=6, rebuild=True)
    assert rebuilt.embedded == 20
