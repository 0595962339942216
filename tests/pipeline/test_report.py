"""What a run says: the progress line, the rejects file, the summary and report.json."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from stella_ray.pipeline.ledger import Counts
from stella_ray.pipeline.rejects import RejectsFile
from stella_ray.pipeline.report import (
    PACKAGES,
    SECONDS_PER_LINE,
    Progress,
    RunReport,
    package_versions,
)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def report(**values: object) -> RunReport:
    return RunReport("run-1", "db/docs.lance", {"name": "tiny"}, {"corpus": ["语料"]}, **values)  # type: ignore[arg-type]


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize(
    ("seconds", "counts", "total", "line"),
    [
        (10, Counts(), 1000, "0 documents, 0 tokens/s"),
        (10, Counts(rows_read=1234, tokens=56780, shard_bytes=250), 1000,
         "1,234 documents (25%), 5,678 tokens/s, 0:30 left"),
        (600, Counts(rows_read=5, tokens=60, shard_bytes=10), 1000,
         "5 documents (1%), 0 tokens/s, 16:30:00 left"),
        (5, Counts(rows_read=5, tokens=10, shard_bytes=1000), 1000,
         "5 documents (100%), 2 tokens/s, 0:00 left"),
        (5, Counts(rows_read=5, tokens=10, shard_bytes=1010), 1000,
         "5 documents (100%), 2 tokens/s, 0:00 left"),
        (5, Counts(rows_read=5, tokens=10), 0, "5 documents, 2 tokens/s"),
    ],
)  # fmt: skip
def test_the_line_says_how_much_is_done_how_fast_and_how_long_it_takes(
    seconds: float, counts: Counts, total: int, line: str
) -> None:
    clock = Clock()
    progress = Progress(total, clock)
    clock.now += seconds
    assert progress.line(counts) == line


def test_the_first_moment_is_no_division_by_zero() -> None:
    assert (
        Progress(10, Clock()).line(Counts(shard_bytes=5.0)).endswith("(50%), 0 tokens/s, 0:00 left")
    )


def test_without_a_terminal_a_line_comes_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = Progress(100, clock)
    lines = []
    for second in range(25):
        clock.now = 1000.0 + second
        progress.show(Counts(rows_read=second))
        lines.append(capsys.readouterr().err)
    progress.close()
    assert [i for i, line in enumerate(lines) if line] == [SECONDS_PER_LINE, 2 * SECONDS_PER_LINE]
    assert lines[10] == "10 documents, 0 tokens/s\n"
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- rejects


def test_rejects_are_lines_of_json_with_place_id_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "runs/1/rejects.jsonl"
    with RejectsFile(str(path)) as rejects:
        rejects.add("语料/a.jsonl", 7, 'a"b\n', "the text is null")
        rejects.add("b.csv", -1, None, "the id is missing")
        assert rejects.count == 2
    assert path.read_text("utf-8").count("\n") == 2
    assert "语料" in path.read_text("utf-8")
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"shard": "语料/a.jsonl", "row": 7, "id": 'a"b\n', "reason": "the text is null"},
        {"shard": "b.csv", "row": -1, "id": None, "reason": "the id is missing"},
    ]


def test_no_rejects_leave_no_file(tmp_path: Path) -> None:
    with RejectsFile(str(tmp_path / "runs/rejects.jsonl")) as rejects:
        pass
    assert rejects.count == 0
    assert list(tmp_path.iterdir()) == []


def test_rejects_of_a_run_that_breaks_off_are_there(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"

    def night() -> None:
        with RejectsFile(str(path)) as rejects:
            rejects.add("a", 0, "1", "why")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        night()
    assert json.loads(path.read_text("utf-8"))["reason"] == "why"


def test_rejects_go_to_any_storage() -> None:
    with RejectsFile("memory://stella-runs/1/rejects.jsonl") as rejects:
        rejects.add("a", 0, "一", "why")
    lines = fsspec.filesystem("memory").cat_file("/stella-runs/1/rejects.jsonl").decode()
    assert json.loads(lines) == {"shard": "a", "row": 0, "id": "一", "reason": "why"}


# ---------------------------------------------------------------- report.json


def test_a_report_is_saved_to_each_place(tmp_path: Path) -> None:
    places = [tmp_path / "runs/1/report.json", tmp_path / "copy.json"]
    saved = report(rows_read=3, embedded=2, rejected=1)
    assert saved.save(*map(str, places))
    for place in places:
        found = json.loads(place.read_text("utf-8"))
        assert (found["run_id"], found["outcome"], found["rows_read"]) == ("run-1", "unfinished", 3)
        assert found["settings"] == {"corpus": ["语料"]}
        assert found["versions"]["python"]


def test_a_report_is_saved_whole_or_not_at_all_with_a_word_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "report.json"
    report(rows_read=1).save(str(place))
    broken = report(rows_read=2)
    broken.settings["odd"] = object()
    assert not broken.save(str(place))
    assert f"{place}: the report could not be written (" in caplog.text
    assert json.loads(place.read_text("utf-8"))["rows_read"] == 1
    assert list(tmp_path.iterdir()) == [place]


def test_a_report_takes_over_what_the_receipts_add_up_to() -> None:
    counts = Counts(rows_read=9, repeated=2, rejected=1, truncated=3, tokens=50, padded_tokens=60,
                    read_seconds=1.23456, encode_seconds=2.0, write_seconds=3.0)  # fmt: skip
    found = report()
    found.count(counts)
    assert (found.rows_read, found.repeated, found.rejected, found.truncated) == (9, 2, 1, 3)
    assert (found.tokens, found.padded_tokens) == (50, 60)
    assert found.seconds == {"read": 1.235, "encode": 2.0, "write": 3.0}


def test_stages_are_timed_and_add_up_even_when_they_fail() -> None:
    found = report()
    found.add_seconds("commit", 1.5)
    found.add_seconds("commit", 2.0)
    assert found.seconds == {"commit": 3.5}
    with pytest.raises(ValueError, match="no"), found.stage("verify"):
        raise ValueError("no")
    assert 0 <= found.seconds["verify"] < 1


def test_the_summary_holds_the_counts_and_names_what_to_look_at() -> None:
    words = str(report(rows_read=12_345, embedded=12_000, unchanged=300, refreshed=5, rejected=40,
                       repeated=5, deleted=2, tokens=75, padded_tokens=100, truncated=4,
                       tokens_per_second=1234.5, table_rows=12_300,
                       table_documents=12_300, version=7, live_before=5,
                       outcome="published", rejects="runs/1/rejects.jsonl"))  # fmt: skip
    assert words.splitlines() == [
        "read 12,345 rows: 12,000 embedded, 300 unchanged (5 of them refreshed), 40 rejected,"
        " 5 repeated; 2 deleted",
        "75 tokens, 25.0% padding, 4 documents cut at max_tokens, 1,234 tokens/s",
        "table db/docs.lance: 12,300 rows, version 7 is live (was 5)",
        "rejects: runs/1/rejects.jsonl",
    ]


def test_the_summary_of_a_quiet_night_is_short() -> None:
    words = str(report(rows_read=3, unchanged=3, table_rows=3, table_documents=3, version=2))
    assert "refreshed" not in words
    assert "rejects:" not in words
    assert "0.0% padding" in words
    assert "is live" not in words


def test_versions_name_every_package_whether_it_is_there_or_not() -> None:
    found = package_versions()
    assert set(found) == {"python", *PACKAGES}
    assert all(found.values())
