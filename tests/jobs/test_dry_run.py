"""--dry_run says what the run then does, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.embed import dry_run, run
from stella_ray.errors import IncompleteRun, SettingsError
from stella_ray.pipeline.estimate import EstimateSettings
from stella_ray.pipeline.forecast import sample
from stella_ray.pipeline.shards import Shard
from tests.conftest import HAN
from tests.jobs.conftest import Desk, documents, text

pytestmark = pytest.mark.ray


def tree(folder: Path) -> dict[str, int]:
    """Every file below, with when it was changed."""
    found = folder.rglob("*") if folder.exists() else []
    return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


@pytest.mark.parametrize("long", ["truncate", "chunk"])
def test_a_dry_run_counts_what_the_run_then_does(
    desk: Desk, write_jsonl: Callable[..., Path], long: str, capsys: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "long": long,
        "keep_columns": ["kind"],
        "max_reject_fraction": 0.5,
        "max_delete_fraction": 0.5,
    }
    rows = [{**row, "kind": "a"} for row in documents(60)]
    for row in rows[:5]:
        row["text"] = "".join(HAN[i % 900] for i in range(1_500))  # beyond 1,024 tokens
    write_jsonl(desk.corpus / "a.jsonl", rows[:40])
    write_jsonl(desk.corpus / "b.jsonl", rows[40:])
    first = dry_run(desk.job(dry_run=True, **settings))
    assert not desk.table.parent.exists()
    report = run(desk.job(**settings))
    assert (first.new, first.changed, first.tokens) == (60, 0, report.tokens)
    assert first.table_rows == report.table_rows
    assert first.truncated == report.truncated

    rows[0]["text"] += "改"  # changed
    rows[7]["text"] = "改了"
    rows[8]["kind"] = "b"  # refreshed
    rows[1]["kind"] = "b"
    again = [*rows[:40], {**rows[9], "id": "new"}, rows[10], {**rows[11], "text": "两个"}]
    write_jsonl(desk.corpus / "a.jsonl", [*again, {"id": "empty", "text": "", "kind": "a"}])
    write_jsonl(desk.corpus / "b.jsonl", rows[40:50])  # ten are gone
    before = tree(tmp_path)
    capsys.readouterr()
    second = dry_run(desk.job(dry_run=True, **settings))
    said = capsys.readouterr().out
    assert tree(tmp_path) == before
    report = run(desk.job(**settings))
    assert second.new + second.changed == report.embedded
    for name in ("unchanged", "refreshed", "rejected", "repeated", "deleted", "table_rows"):
        assert getattr(second, name) == getattr(report, name), name
    assert second.changed == report.replaced - report.refreshed
    # Of a doubled id the loser is tokenised too.
    assert second.tokens == report.tokens
    assert (
        "1 new, 2 changed, 48 unchanged (2 of them refreshed), 2 rejected, 1 repeated; 10" in said
    )
    assert "rejected 1: the id occurs again with a different text" in said
    assert "tokens/s as in run" in said


def test_what_a_run_would_refuse_is_told_with_its_exit_code(
    small_desk: Desk, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    run(small_desk.job())
    write_jsonl(small_desk.corpus / "a.jsonl", documents(5))
    place = tmp_path / "estimate.json"
    with pytest.raises(IncompleteRun, match=r"would end with: 7 of the table's 12 documents"):
        dry_run(small_desk.job(dry_run=True, report=str(place)))
    told = json.loads(place.read_text("utf-8"))
    assert (told["deleted"], told["unchanged"]) == (7, 5)
    assert "max_delete_fraction" in told["refused"]


def test_gpu_hours_and_cost_follow_the_tokens(small_desk: Desk, capsys: Any) -> None:
    asked = EstimateSettings(tokens_per_second=10.0, encoders=2, price_per_hour=36.0)
    found = dry_run(small_desk.job(dry_run=True, estimate=asked))
    assert found.seconds == pytest.approx(found.tokens / 20)
    assert found.encoder_hours == pytest.approx(found.tokens / 36_000)
    assert found.cost == pytest.approx(found.tokens / 1_000)
    found = dry_run(small_desk.job(dry_run=True, estimate=EstimateSettings(gpu="h100")))
    assert "1 h100 at" in found.rate
    with pytest.raises(SettingsError, match=r"estimate\.gpu 'tpu' isn't known"):
        dry_run(small_desk.job(dry_run=True, estimate=EstimateSettings(gpu="tpu")))
    capsys.readouterr()


def test_a_sample_of_the_shards_is_scaled_to_all(
    desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    for number in range(10):
        rows = [{"id": f"{number}-{i}", "text": text(number * 20 + i, 18)} for i in range(20)]
        write_jsonl(desk.corpus / f"{number}.jsonl", rows)
    found = dry_run(desk.job(dry_run=True, estimate=EstimateSettings(share=0.3)))
    assert (found.shards, found.shards_read) == (10, 3)
    assert found.new == pytest.approx(200, rel=0.02)
    assert found.table_rows == pytest.approx(200, rel=0.02)
    report = run(desk.job())
    assert found.tokens == pytest.approx(report.tokens, rel=0.02)
    found = dry_run(desk.job(dry_run=True, estimate=EstimateSettings(share=0.3)))
    assert found.unchanged == pytest.approx(200, rel=0.02)
    assert found.deleted <= 4


def test_a_sample_is_spread_over_the_shards() -> None:
    shards = [Shard(f"{i:03}", 1) for i in range(100)]
    places = [int(shard.path) for shard in sample(shards, 0.05)]
    assert len(places) == 5
    assert max(b - a for a, b in zip([0, *places], [*places, 99], strict=True)) <= 20
    assert len(sample(shards, 0.001)) == 1
    assert sample(shards, 1.0) == shards
