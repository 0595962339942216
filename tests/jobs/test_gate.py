"""A night that the gate refuses: exit 6, `live` as it was, and the next run doesn't trust it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest

from stella_ray.errors import IncompleteRun
from stella_ray.pipeline.ledger import SampleBook
from stella_ray.table.versions import status
from tests.jobs.conftest import Desk, documents, rows_of

pytestmark = pytest.mark.ray


def tags(desk: Desk) -> dict[str, int]:
    found = lance.dataset(f"{desk.table}.lance").tags.list()
    return {name: int(tag["version"]) for name, tag in found.items()}


@pytest.fixture
def broken_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """As if the encoders' vectors weren't what float32 gives; call it when they are whole again."""

    def other(book: SampleBook) -> tuple[np.ndarray, np.ndarray]:
        keys, vectors = arrays(book)
        return keys, np.roll(vectors, 1, axis=1)

    arrays = SampleBook.arrays
    monkeypatch.setattr(SampleBook, "arrays", other)
    return monkeypatch.undo


def test_wrong_vectors_are_not_published_nor_trusted_by_the_next_run(
    small_desk: Desk, write_jsonl: Callable[..., Path], broken_encoder: Callable[[], None]
) -> None:
    desk = small_desk
    with pytest.raises(IncompleteRun, match=r"version \d+ did not pass .* encoding: ") as raised:
        desk.embed()
    assert raised.value.exit_code == 6
    assert set(tags(desk)) == {name for name in tags(desk) if name.startswith("suspect-")}

    broken_encoder()
    assert desk.embed().embedded == 12  # a first night anew
    assert not [name for name in tags(desk) if name.startswith("suspect-")]


def test_a_refused_night_leaves_live_and_can_be_looked_at(
    published_desk: Desk, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = published_desk
    write_jsonl(desk.corpus / "b.jsonl", documents(5, 12))
    with monkeypatch.context() as patch:
        arrays = SampleBook.arrays
        patch.setattr(SampleBook, "arrays", lambda book: (arrays(book)[0], -arrays(book)[1]))
        with pytest.raises(IncompleteRun):
            desk.embed()
    assert len(rows_of(desk.table)) == 12
    (candidate,) = [one for one in status(f"{desk.table}.lance") if one.gate and one.rows == 17]
    assert [check.name for check in candidate.gate or [] if not check.passed] == ["encoding"]
    assert any(tag.startswith("suspect-") for tag in candidate.tags)

    report = desk.embed()
    assert (report.embedded, report.unchanged) == (5, 12)
    assert len(rows_of(desk.table)) == 17
    assert report.gate
    assert all(check["passed"] for check in report.gate)
