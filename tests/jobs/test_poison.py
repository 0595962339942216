"""A text that makes the encoder raise: rejected with its reason, night after night; no other is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stella_ray.encode.models import EncoderSettings
from tests.conftest import make_encoder
from tests.encode.conftest import POISON, make_poisonable
from tests.jobs.conftest import Desk, documents, rows_of

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("long", ["truncate", "chunk"])
def test_a_poison_text_is_rejected_and_the_rest_of_its_batch_is_kept(
    desk: Desk, tmp_path: Path, write_jsonl: Callable[..., Path], long: str
) -> None:
    encoder = make_poisonable(make_encoder(tmp_path / "model"))
    rows = documents(60)
    # In the middle of a document of several chunks, only one of which is poison.
    rows[17]["text"] = f"{rows[17]['text']}{'好。' * 30}{POISON}{'好。' * 30}"
    write_jsonl(desk.corpus / "a.jsonl", rows)
    settings = {
        "encoder": EncoderSettings(path=str(encoder), max_tokens=200 if long == "truncate" else 32),
        "long": long,
        "chunk_overlap": 4,
        "max_reject_fraction": 0.02,
    }
    for night in range(2):
        report = desk.embed(**settings)
        assert (report.rejected, report.rows_read, report.table_documents) == (1, 60, 59)
        assert report.embedded == (0 if night else 59)
        assert report.rejects is not None
        lines = Path(report.rejects).read_text("utf-8").splitlines()
        (reject,) = map(json.loads, lines)
        assert (reject["id"], reject["row"]) == ("d17", 17)
        assert "the encoder failed on this text (" in reject["reason"]
        assert "vocabulary" in reject["reason"]
        found = set(rows_of(desk.table)) if long == "truncate" else ids_of(desk)
        assert found == {row["id"] for row in rows} - {"d17"}


def ids_of(desk: Desk) -> set[str]:
    import lance

    dataset = lance.dataset(f"{desk.table}.lance", version="live")
    return set(dataset.to_table(columns=["doc_id"])["doc_id"].to_pylist())
