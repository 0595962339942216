"""A corpus and the job over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest

from jobs.embed import EmbedJob, run
from stella_ray.encode.models import EncoderSettings
from stella_ray.pipeline.report import RunReport
from tests.conftest import HAN, write_rows


def text(number: int, length: int = 12) -> str:
    """A text of its own for each number."""
    return "".join(HAN[(number * 37 + i * (number % 11 + 1)) % len(HAN)] for i in range(length))


def documents(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": f"d{i}", "text": text(i, 5 + i * 7 % 60), "title": f"题{i}"}
        for i in range(first, first + count)
    ]


def rows_of(table: Path, tag: str = "live") -> dict[str, dict[str, Any]]:
    """Every row of a published table by id; fails on a doubled id."""
    rows = lance.dataset(f"{table}.lance", version=tag).to_table().to_pylist()
    by_id = {row["doc_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


@dataclass
class Desk:
    """A corpus folder, a table's place, and the encoder."""

    corpus: Path
    table: Path
    encoder: Path

    def job(self, **settings: Any) -> EmbedJob:
        settings = {"corpus": [str(self.corpus)], "table": str(self.table), **settings}
        return EmbedJob(**{"encoder": EncoderSettings(path=str(self.encoder)), **settings})

    def embed(self, **settings: Any) -> RunReport:
        return run(self.job(**settings))

    def copy(self, home: Path) -> Desk:
        """The same corpus and table in a folder of their own, for one test to change."""
        shutil.copytree(self.corpus, home / "corpus")
        shutil.copytree(self.table.parent, home / "db")
        return Desk(home / "corpus", home / "db" / self.table.name, self.encoder)


@pytest.fixture
def desk(tmp_path: Path, tiny_encoder: Path, local_ray: None) -> Desk:
    return Desk(tmp_path / "corpus", tmp_path / "db/docs", tiny_encoder)


@pytest.fixture
def small_desk(desk: Desk, write_jsonl: Callable[..., Path]) -> Desk:
    """Twelve documents in one shard."""
    write_jsonl(desk.corpus / "a.jsonl", documents(12))
    return desk


@dataclass
class Evening:
    """Twelve documents in one shard, published, and what the run said; for reading alone."""

    desk: Desk
    report: RunReport


@pytest.fixture(scope="session")
def evening(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, local_ray: None
) -> Evening:
    home = tmp_path_factory.mktemp("evening")
    desk = Desk(home / "corpus", home / "db/docs", tiny_encoder)
    write_rows(desk.corpus / "a.jsonl", documents(12))
    return Evening(desk, desk.embed(report=str(home / "out/report.json")))


@pytest.fixture
def published_desk(evening: Evening, tmp_path: Path) -> Desk:
    """The twelve documents as they were published, for one test to change."""
    return evening.desk.copy(tmp_path)
