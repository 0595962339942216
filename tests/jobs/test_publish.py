"""Seeing versions and rolling back from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.publish import PublishJob, main, run
from stella_ray import settings
from stella_ray.errors import TableError
from stella_ray.rows import table_schema
from stella_ray.table.fragments import write_rows
from stella_ray.table.publish import publish
from stella_ray.table.vectors import VectorTable, table_uri

ROOT = Path(__file__).parents[2]
SCHEMA = table_schema([], True, 4, pa.float32())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A thousand rows published in version 2, one more in version 3."""
    place = tmp_path / "a folder with quite a long name, as temporary folders have" / "docs"
    made = VectorTable.create(table_uri(str(place)), SCHEMA, {"name": "tiny", "digest": "d1"})
    for count in (1_000, 1):
        flat = pa.array([0.5] * 4 * count, pa.float32())
        block = pa.table(
            {
                "doc_id": [f"d{count}-{i}" for i in range(count)],
                "text": ["text"] * count,
                "vector": pa.FixedSizeListArray.from_arrays(flat, 4),
                "n_tokens": pa.array([3] * count, pa.int32()),
                "truncated": [False] * count,
                "row_key": [f"{count:08}{i:08}".encode() for i in range(count)],
                "run_id": ["run"] * count,
            },
            schema=SCHEMA,
        )
        publish(made.commit(write_rows(block, made.uri)))
    return place


def shell(*arguments: str) -> tuple[int, str, str]:
    """Run jobs/publish.py in a process of its own."""
    command = [sys.executable, "jobs/publish.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def cells(page: str) -> list[list[str]]:
    """The rows of a printed table."""
    lines = [line.split("│")[1:-1] for line in page.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line] for line in lines]


def test_status_shows_versions_rows_and_tags_under_the_tables_whole_name(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PublishJob(action="status", table=str(table)))
    page = capsys.readouterr().out
    assert page.splitlines()[0] == f"{table}.lance"
    assert [(version, rows, tags) for version, _, rows, tags in cells(page)] == [
        ("3", "1,001", "live"), ("2", "1,000", "live-previous"), ("1", "0", ""),
    ]  # fmt: skip
    for word in ("version", "written", "rows", "tags"):
        assert word in page


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


def test_the_command_line_takes_the_action_as_its_first_word(table: Path) -> None:
    code, page, errors = shell("status", "--table", str(table))
    assert (code, errors) == (0, "")
    assert cells(page)[0][3] == "live"
    assert shell("--table", str(table), "--action", "status") == (0, page, "")
    code, said, errors = shell("rollback", "--table", str(table))
    assert (code, errors) == (0, "")
    assert said.startswith("live is version 2 again")
    assert VectorTable.open(table_uri(str(table)), "live").version == 2
    code, page, errors = shell("status", "--table", f"{table}-nope")
    assert (code, page, errors.count("\n")) == (5, "", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["status", "--table", "nope/docs"], 5, "nope/docs.lance: no such table; write one with"),
        (["rollback", "--table", "nope/docs"], 5, "nope/docs.lance: no such table; write one"),
        (["status", "--table", "docs!"], 5, "docs!: expected DIR/NAME, the name of letters"),
        (["stauts", "--table", "db/docs"], 2, "stauts"),
        (["status"], 2, "the following arguments are required: table"),
        (["--table", "db/docs"], 2, "the following arguments are required: action"),
        (["status", "--tabel", "db/docs"], 2, "unknown setting --tabel; did you mean --table?"),
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
