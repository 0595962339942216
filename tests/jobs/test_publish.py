"""Seeing versions, choosing one and cleaning up from the command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.publish import PublishJob, main, run
from stella_ray import settings
from stella_ray.errors import TableError
from stella_ray.rows import table_schema
from stella_ray.storage import StorageSettings, write_json
from stella_ray.table.fragments import write_rows
from stella_ray.table.gate import GateCheck
from stella_ray.table.lock import locked
from stella_ray.table.publish import publish
from stella_ray.table.vectors import VectorTable, table_uri

ROOT = Path(__file__).parents[2]
SCHEMA = table_schema([], True, 4, pa.float32())
RUNS = ("20260101T020000-aaaaaa", "20260102T020000-bbbbbb", "20260103T020000-cccccc")
FINE = GateCheck("rows", True, "1,001 rows", "1,001 rows")
WRONG = GateCheck("vectors", False, "1 of 1 new rows hold no unit vector", "length 1")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A thousand rows published in version 2, one more in 3; version 4 did not pass the gate."""
    place = tmp_path / "a folder with quite a long name, as temporary folders have" / "docs"
    made = VectorTable.create(table_uri(str(place)), SCHEMA, {"name": "tiny", "digest": "d1"})
    for number, (run_id, count) in enumerate(zip(RUNS, (1_000, 1, 1), strict=True)):
        flat = pa.array([0.5] * 4 * count, pa.float32())
        block = pa.table(
            {
                "doc_id": [f"d{number}-{i}" for i in range(count)],
                "text": ["text"] * count,
                "vector": pa.FixedSizeListArray.from_arrays(flat, 4),
                "n_tokens": pa.array([3] * count, pa.int32()),
                "truncated": [False] * count,
                "row_key": [f"{number:08}{i:08}".encode() for i in range(count)],
                "run_id": [run_id] * count,
            },
            schema=SCHEMA,
        )
        made.run_id = run_id
        made.commit(write_rows(block, made.uri))
        checks = [FINE, WRONG] if run_id == RUNS[2] else [FINE]
        if FINE in checks[-1:]:
            publish(made, run_id)
        report = {
            "table": made.uri,
            "version": made.version,
            "gate": [dataclasses.asdict(check) for check in checks],
        }
        write_json(f"{place.parent}/runs/{run_id}/report.json", report, StorageSettings())
    return place


def tags(table: Path) -> dict[str, int]:
    return VectorTable.open(table_uri(str(table))).tagged()


def shell(*arguments: str) -> tuple[int, str, str]:
    """Run jobs/publish.py in a process of its own."""
    command = [sys.executable, "jobs/publish.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def cells(page: str) -> list[list[str]]:
    """The rows of a printed table."""
    lines = [line.split("│")[1:-1] for line in page.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line] for line in lines]


def test_status_shows_each_version_with_its_run_and_gate_under_the_tables_whole_name(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PublishJob(action="status", table=str(table)))
    page = capsys.readouterr().out
    assert page.splitlines()[0] == f"{table}.lance"
    assert [[one[0], *one[2:3], *one[4:]] for one in cells(page)] == [
        ["4", "1,002", RUNS[2], "", "failed: vectors"],
        ["3", "1,001", RUNS[1], "live, run", "passed"],
        ["2", "1,000", RUNS[0], "live-previous, run", "passed"],
        ["1", "0", "", "", ""],
    ]
    assert max(len(line) for line in page.splitlines()[1:] if line[:1] in "┃│") <= 120
    for word in ("version", "written", "rows", "size", "run", "tags", "gate"):
        assert word in page
    assert "version 4: vectors: 1 of 1 new rows hold no unit vector (expected: length 1)\n" in page
    assert "stored in all" in page.splitlines()[-1]


def test_status_as_json_is_one_object_a_version(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PublishJob(action="status", table=str(table), json=True))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["version"] for one in found] == [4, 3, 2, 1]
    assert found[0]["gate"] == [dataclasses.asdict(FINE), dataclasses.asdict(WRONG)]
    assert (found[1]["run"], found[1]["tags"]) == (RUNS[1], ["live", f"run-{RUNS[1]}"])
    assert found[1]["data_bytes"] > 0


def test_rollback_says_what_is_live_and_how_to_undo_it(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PublishJob(action="rollback", table=str(table)))
    assert capsys.readouterr().out == (
        "live is version 2 again; 3 is live-previous: one more rollback undoes it\n"
    )
    run(PublishJob(action="rollback", table=f"{table}.lance"))
    assert "live is version 3 again; 2 is live-previous" in capsys.readouterr().out


def test_a_rollback_with_nothing_to_go_back_to_is_refused(table: Path) -> None:
    made = VectorTable.open(table_uri(str(table)))
    made.dataset.tags.delete("live-previous")
    with pytest.raises(TableError, match="no earlier published version to go back to"):
        run(PublishJob(action="rollback", table=str(table)))


def test_promote_says_what_is_live_and_how_to_undo_it(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PublishJob(action="promote", version="2", table=str(table)))
    said = "live is version 2; 3 is live-previous: rollback undoes it\n"
    assert capsys.readouterr().out == said
    run(PublishJob(action="promote", version=f"run-{RUNS[0]}", table=str(table)))
    assert capsys.readouterr().out == "live is version 2 already\n"
    run(PublishJob(action="promote", version="4", force=True, table=str(table)))
    assert capsys.readouterr().out.startswith("live is version 4; 2 is live-previous")


def test_prune_keeps_what_is_live_the_way_back_and_the_newest_version(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PublishJob(action="prune", keep=1, table=str(table)))
    said = capsys.readouterr().out
    assert said.startswith("removed 1 versions and 0 reports, ")
    assert said.endswith(" stay\n")
    run(PublishJob(action="status", table=str(table)))
    assert [row[0] for row in cells(capsys.readouterr().out)] == ["4", "3", "2"]


def test_nothing_is_pruned_while_a_run_holds_the_table(table: Path) -> None:
    uri = table_uri(str(table))
    with (
        locked(uri, holder="a run", storage=StorageSettings(), on_busy="fail"),
        pytest.raises(TableError),
    ):
        run(PublishJob(action="prune", keep=1, table=str(table)))
    assert len(VectorTable.open(uri).dataset.versions()) == 4


def test_the_command_line_takes_the_action_as_its_first_word(table: Path) -> None:
    code, page, errors = shell("status", "--table", str(table))
    assert (code, errors) == (0, "")
    assert cells(page)[1][5] == "live, run"
    assert shell("--table", str(table), "--action", "status") == (0, page, "")
    code, said, errors = shell("promote", "2", "--table", str(table))
    assert (code, errors) == (0, "")
    assert said.startswith("live is version 2; 3 is")
    assert tags(table)["live"] == 2
    code, page, errors = shell("status", "--table", f"{table}-nope")
    assert (code, page, errors.count("\n")) == (5, "", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["status", "--table", "nope/docs"], 5, "nope/docs.lance: no such table; write one with"),
        (["rollback", "--table", "nope/docs"], 5, "nope/docs.lance: no such table; write one"),
        (["promote", "3", "--table", "nope/docs"], 5, "nope/docs.lance: no such table; write"),
        (["prune", "--keep", "3", "--table", "nope/docs"], 5, "nope/docs.lance: no such table"),
        (["status", "--table", "docs!"], 5, "docs!: expected DIR/NAME, the name of letters"),
        (["stauts", "--table", "db/docs"], 2, "stauts"),
        (["status"], 2, "the following arguments are required: table"),
        (["--table", "db/docs"], 2, "the following arguments are required: action"),
        (["status", "--tabel", "db/docs"], 2, "unknown setting --tabel; did you mean --table?"),
        (["promote", "--table", "db/docs"], 2, "promote which version? Expected promote VERSION"),
        (["promote", "3", "4", "--table", "db/docs"], 2, "promote 3 4: too many words; expected"),
        (["status", "3", "--table", "db/docs"], 2, "--version belongs to promote; status takes"),
        (["rollback", "--force", "--table", "db/docs"], 2, "--force belongs to promote; rollback"),
        (["rollback", "--keep", "2", "--table", "db/docs"], 2, "--keep belongs to prune; rollback"),
        (["prune", "--json", "--keep", "2", "--table", "db/docs"], 2, "--json belongs to status"),
        (["prune", "--table", "db/docs"], 2, "prune needs --keep, 1 or more"),
        (["prune", "--keep", "0", "--table", "db/docs"], 2, "prune needs --keep, 1 or more"),
        (["prune", "--keep", "x", "--table", "db/docs"], 2, "keep"),
        (
            ["status", "--table", "db/docs", "--endpoint_url", "x"],
            2,
            "storage.endpoint_url x isn't",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    arguments: list[str],
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["publish.py", *arguments])
    with pytest.raises(SystemExit) as left:
        settings.run_job(main)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (code, "")
    assert err.startswith("error: ")
    assert line in err
    assert err.count("\n") == 1


def test_a_version_that_is_refused_is_one_line_that_says_the_way_out(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, code, words in (
        ("4", 2, "version 4 never passed the publishing gate; give --force true"),
        ("17", 5, "no version 17; see jobs/publish.py status"),
        (
            "run-20260105",
            5,
            "no tag 'run-20260105'; expected a version's number or a tag: live (3)",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["publish.py", "promote", version, "--table", str(table)])
        with pytest.raises(SystemExit) as left:
            settings.run_job(main)
        err = capsys.readouterr().err
        assert (left.value.code, err.count("\n")) == (code, 1)
        assert words in err
    assert tags(table)["live"] == 3
