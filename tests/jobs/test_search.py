"""Searching as a user does: words in, the table's own encoder, hits as a page or as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.cells import cell_len

from jobs import search as searching
from jobs.embed import how_to_open
from jobs.search import SearchJob, run
from stella_ray import settings
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import ModelError, ModelMismatch, SettingsError, TableError
from stella_ray.rows import row_keys, table_schema
from stella_ray.table.fragments import write_rows
from stella_ray.table.index import tidy
from stella_ray.table.publish import publish
from stella_ray.table.vectors import VectorTable, table_uri
from tests.conftest import make_encoder, write

ROOT = Path(__file__).parents[2]

DOCUMENTS: list[tuple[str, str | None, str]] = [
    ("wiki/1", "古书", "中华古人之书与乐，今人亦习之"),
    ("wiki/2", "北京", "北京之冬，冰厚三寸"),
    ("it's", "[red]了不[/red]", "不是 [red]分别[/red] [bold]变化 :smile: 也不乱叫"),
    ("line\nbreak", None, "一行一事\n\n二行二事\t三 \x1b[31m不变\x1b[0m"),
    ("long", "十个", "一二三四五六七八九十" * 30),
    ("i" * 150, "t" * 80, "the ids and titles of some corpora are long"),
]
"""In characters that the tiny encoder knows; they end at U+55CF."""
IDS = [doc_id for doc_id, _, _ in DOCUMENTS]
TEXTS = [text for _, _, text in DOCUMENTS]


def fill(
    place: Path,
    encoder: EncoderSettings,
    *,
    remembered: dict[str, Any] | None = None,
    documents: Sequence[tuple[str, str | None, str]] = DOCUMENTS,
) -> Path:
    """Publish a table of these documents with real vectors, as jobs/embed.py would."""
    ids, titles, texts = (list(column) for column in zip(*documents, strict=True))
    opened = Encoder(encoder)
    metadata = {**opened.spec.fingerprint, "open": how_to_open(encoder), **(remembered or {})}
    title = [pa.field("title", pa.string()), pa.field("year", pa.int32())]
    schema = table_schema(title, True, opened.dim, pa.float32())
    table = VectorTable.create(table_uri(str(place)), schema, metadata)
    flat = pa.array(opened.embed(texts, prefix=encoder.prefix).reshape(-1))
    columns: dict[str, Any] = {
        "doc_id": ids,
        "title": titles,
        "year": [2000 + i for i in range(len(ids))],
        "text": texts,
        "vector": pa.FixedSizeListArray.from_arrays(flat, opened.dim),
        "n_tokens": [len(text) + 2 for text in texts],
        "truncated": [False] * len(ids),
        "run_id": ["run"] * len(ids),
    }
    source = pa.table({name: columns[name] for name in ("doc_id", "title", "text")})
    columns["row_key"] = row_keys(source, ["title"], opened.spec.fingerprint["digest"])
    block = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    table.commit(write_rows(block, table.uri))
    tidy(table)
    publish(table, "run")
    return place


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """The tiny encoder with prefixes of characters that it knows, so that they do something."""
    here = tmp_path_factory.mktemp("models") / "encoder"
    make_encoder(here, spread=0.02)  # soft enough for a text to be its own nearest
    prompts = {"prompts": {"query": "何: ", "passage": "包含: "}}
    write(here / "config_sentence_transformers.json", prompts)
    return here


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    home = tmp_path_factory.mktemp("search")
    return fill(home / "db" / "docs", EncoderSettings(path=str(encoder)))


def job(table: Path, query: str = "古人之书", **more: Any) -> SearchJob:
    return SearchJob(table=str(table), query=query, **more)


def command_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """What a shell would see, without the seconds of a new process."""
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    with pytest.raises(SystemExit) as left:
        settings.run_job(searching.main)
    seen = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, seen.out, seen.err


def test_hits_are_those_of_the_encoder_with_its_query_prefix(table: Path, encoder: Path) -> None:
    opened = Encoder(str(encoder))
    documents = opened.embed(TEXTS, prefix="passage")
    for query in ("古人之书", "北京在何方", "ids"):
        scores = documents @ opened.embed([query], prefix="query")[0]
        hits = run(job(table, query))
        assert [hit["doc_id"] for hit in hits] == [IDS[i] for i in np.argsort(-scores)]
        assert [hit["score"] for hit in hits] == pytest.approx(np.sort(scores)[::-1], abs=1e-5)
        without = documents @ opened.embed([query], prefix="passage")[0]
        assert np.abs(without - scores).max() > 1e-3, "the prefix makes a difference here"


def test_a_text_itself_is_found_first(table: Path) -> None:
    for doc_id, _, text in DOCUMENTS[:3]:
        assert run(job(table, text, limit=1))[0]["doc_id"] == doc_id


def test_the_table_remembers_how_its_encoder_was_set(tmp_path: Path, tiny_encoder: Path) -> None:
    encoder = EncoderSettings(
        path=str(tiny_encoder), max_tokens=8, pooling="cls", query_prefix="何: ", prefix="丁: "
    )
    place = fill(tmp_path / "docs", encoder)
    query = "一二三四五六七八九十"
    expected = Encoder(encoder).embed([query], prefix="何: ")[0]
    scores = Encoder(encoder).embed(TEXTS, prefix="丁: ") @ expected
    hits = run(job(place, query))
    assert [hit["score"] for hit in hits] == pytest.approx(np.sort(scores)[::-1], abs=1e-5)


def test_json_lines_hold_id_score_kept_columns_and_the_whole_text(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = run(job(table, json=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [["id", "score", "title", "year", "text"]] * 6
    assert [line["id"] for line in lines] == [hit["doc_id"] for hit in hits]
    by_id = {line["id"]: line for line in lines}
    assert {(i, by_id[i]["title"], by_id[i]["text"]) for i in by_id} == set(DOCUMENTS)
    assert all(
        line["score"] == round(hit["score"], 6) for line, hit in zip(lines, hits, strict=True)
    )


def test_the_page_shows_id_score_title_and_snippet_as_they_are(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = run(job(table))
    page = capsys.readouterr().out
    for word in ("id", "score", "title", "snippet", "wiki/1", "古书", "北京之冬，冰厚三寸"):
        assert word in page
    assert "[red]了不[/red]" in page
    assert "不是 [red]分别[/red] [bold]变化" in page
    assert ":smile:" in page
    assert "\x1b" not in page, "a text doesn't command the terminal"
    assert "line break" in page
    assert all(f"{hit['score']:.4f}" in page for hit in hits)
    assert all(cell_len(line) <= 120 for line in page.splitlines())


def test_a_snippet_is_sixty_characters_and_says_that_there_is_more(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(job(table, filter="doc_id = 'long'"))
    shown = [line.split("│")[4].strip() for line in capsys.readouterr().out.splitlines()[3:-1]]
    assert "".join(shown) == "一二三四五六七八九十" * 6 + "…"


def test_no_hits_are_said_to_be_none(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(job(table, filter="year > 3000")) == []
    assert capsys.readouterr().out == "no hits\n"
    assert run(job(table, filter="year > 3000", json=True)) == []
    assert capsys.readouterr().out == ""


def test_limit_and_filter_hold(table: Path) -> None:
    assert len(run(job(table, limit=2))) == 2
    assert {hit["year"] for hit in run(job(table, filter="year BETWEEN 2001 AND 2003"))} == {
        2001, 2002, 2003,
    }  # fmt: skip
    assert [hit["doc_id"] for hit in run(job(table, filter="doc_id = 'it''s'"))] == ["it's"]


def test_words_are_searched_without_the_encoder(table: Path, tmp_path: Path, encoder: Path) -> None:
    here = tmp_path / "encoder"
    shutil.copytree(encoder, here)
    place = fill(tmp_path / "docs", EncoderSettings(path=str(here)))
    shutil.rmtree(here)
    hits = run(job(place, "冰厚", mode="text"))
    assert [hit["doc_id"] for hit in hits] == ["wiki/2"]
    assert hits[0]["score"] > 0
    assert run(job(place, "龘", mode="text")) == []
    for mode in ("vector", "hybrid"):
        with pytest.raises(ModelError, match="its encoder can't be opened"):
            run(job(place, "冰厚", mode=mode))


def test_words_are_searched_without_loading_torch(table: Path) -> None:
    code = (
        "import sys; from jobs.search import SearchJob, run;"
        f" run(SearchJob(table={str(table)!r}, query='北京', mode='text', json=True));"
        " sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["id"] == "wiki/2"


def test_both_modes_together_are_fused_by_rank(table: Path) -> None:
    by_vector = [hit["doc_id"] for hit in run(job(table, "冰厚三寸"))]
    by_text = [hit["doc_id"] for hit in run(job(table, "冰厚三寸", mode="text"))]
    hits = run(job(table, "冰厚三寸", mode="hybrid"))
    assert len(hits) == len(DOCUMENTS)
    for hit in hits:
        places = [one.index(hit["doc_id"]) + 1 for one in (by_vector, by_text)
                  if hit["doc_id"] in one]  # fmt: skip
        assert hit["score"] == pytest.approx(sum(1 / (60 + place) for place in places))


def test_a_chunk_is_shown_by_its_number_and_how_many_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    searching.show(
        [
            {"doc_id": "a", "chunk": 2, "chunks": 7, "chunk_start": 9, "chunk_end": 12,
             "text": "中间一段", "score": 0.5},
        ]
    )  # fmt: skip
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].split("│")[1:-1]]
    assert cells == ["a", "0.5000", "3 of 7", "中间一段"]


def test_an_encoder_that_moved_is_found_by_its_new_path(
    tmp_path: Path, table: Path, encoder: Path
) -> None:
    here = tmp_path / "old"
    shutil.copytree(encoder, here)
    place = fill(tmp_path / "docs", EncoderSettings(path=str(here)))
    here.rename(tmp_path / "new")
    with pytest.raises(ModelError) as caught:
        run(job(place))
    assert str(caught.value) == (
        f"{place}.lance: its encoder can't be opened: {here}: no such folder, hub id (owner/name)"
        " or bundled name; give a local model folder or a bundled name (multilingual-e5-small)"
        " as --encoder_path"
    )
    moved = run(job(place, encoder_path=str(tmp_path / "new")))
    assert moved == run(job(table))


def test_a_local_copy_serves_for_a_hub_encoder_with_a_revision(
    tmp_path: Path, table: Path, encoder: Path
) -> None:
    hub = {"revision": "v1.0", "digest": "0" * 32, "name": "owner/tiny",
           "open": {"path": "owner/tiny", "revision": "v1.0", "prefix": "passage"}}  # fmt: skip
    place = fill(tmp_path / "docs", EncoderSettings(path=str(encoder)), remembered=hub)
    assert run(job(place, encoder_path=str(encoder))) == run(job(table))


def test_another_encoder_at_the_old_path_is_refused(
    tmp_path: Path, tiny_encoder: Path, other_encoder: Path
) -> None:
    here = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, here)
    place = fill(tmp_path / "docs", EncoderSettings(path=str(here)))
    shutil.rmtree(here)
    shutil.copytree(other_encoder, here)
    with pytest.raises(ModelMismatch) as caught:
        run(job(place))
    line = str(caught.value)
    assert f"{place}.lance holds vectors of {here} (" in line
    assert f"{here} is now another encoder (" in line
    assert "they differ in weights. Say where the table's own is with --encoder_path" in line
    with pytest.raises(ModelMismatch, match="they differ in weights"):
        run(job(place, encoder_path=str(other_encoder)))


def test_a_table_that_was_not_published_has_nothing_to_find(tmp_path: Path) -> None:
    schema = table_schema([], True, 4, pa.float32())
    VectorTable.create(f"{tmp_path}/docs.lance", schema, {"digest": "x"})
    with pytest.raises(TableError, match="nothing is published yet"):
        run(job(tmp_path / "docs"))


@pytest.mark.parametrize("query", ["", " \n\t　"])
def test_an_empty_query_is_refused(query: str) -> None:
    with pytest.raises(SettingsError, match="the query is empty; expected some words"):
        job(Path("db/docs"), query)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("--query x", 2, "the following arguments are required: table"),
        ("--table TABLE --query=", 2, "the query is empty; expected some words"),
        ("--table TABLE --query x --limit 0", 2, "limit 0 must be 1 to 1,000,000"),
        ("--table TABLE --query x --limit 99999999999999999999", 2, "limit 99999999999999999999"),
        ("--table TABLE --query x --limit 9223372036854775808", 2, "limit 9223372036854775808 m"),
        ("--table TABLE --query x --mode both", 2, 'Parser key "mode": Expected a Literal'),
        ("--table TABLE --query x --limt 3", 2, "unknown setting --limt; did you mean --limit?"),
        ("--table TABLE --query x --filter nope=1", 2, "--filter 'nope=1' can't be answered ("),
        ("--table TABLE --query x --device tpu9", 2, "device 'tpu9' isn't one of torch's"),
        ("--table TABLE --query x --encoder_path /nope", 4, "TABLE.lance: its encoder can't be"),
        ("--table TABLE-nope --query x", 5, "TABLE-nope.lance: no such table; write one with"),
        ("--table TABLE/../a:b --query x", 5, "--table TABLE/../a:b: expected DIR/NAME"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    table: Path,
    arguments: str,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments.replace("TABLE", str(table)).split(" ")
    left, out, err = command_line(words, monkeypatch, capsys)
    assert (left, out) == (code, "")
    assert err.startswith("error: " + line.replace("TABLE", str(table)))
    assert err.count("\n") == 1


def test_the_command_line_finds_and_fails_in_a_process_of_its_own(table: Path) -> None:
    def shell(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "jobs/search.py", "--query", "古人之书", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)

    with (
        shell("--table", f"{table}", "--limit", "2", "--json", "true") as finds,
        shell("--table", f"{table}-nope") as fails,
    ):
        lines, warnings = finds.communicate(timeout=120)
        assert (finds.returncode, warnings) == (0, "")
        assert [json.loads(line)["id"] for line in lines.splitlines()] == [
            hit["doc_id"] for hit in run(job(table, limit=2))
        ]
        assert fails.communicate(timeout=120) == (
            "",
            f"error: {table}-nope.lance: no such table; write one with jobs/embed.py --table\n",
        )
        assert fails.returncode == 5
