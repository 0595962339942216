"""Files that are made to do harm, or might be: bombs, endless rows, deep nesting, odd names."""

from __future__ import annotations

import gzip
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.mutations import bomb, packed
from stella_ray import streams
from stella_ray.errors import (
    MOST_CHARACTERS,
    BadShard,
    CorpusError,
    StellaError,
    brief,
    stella_error_in,
)
from stella_ray.evaluate.local_rows import read_rows
from stella_ray.evaluate.retrieval_folder import read_folder
from stella_ray.evaluate.squad import read_squad
from stella_ray.learn import reading
from stella_ray.learn.evaluation_texts import evaluation_texts
from stella_ray.learn.reading import read_examples
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.corpus import find_shards
from stella_ray.pipeline.kept import kept_fields
from stella_ray.pipeline.shards import Shard, read_shard

NLI = ExampleSource(name="nli", kind="nli", files=["x"])
PAIRS = ExampleSource(name="pairs", kind="pairs", files=["x"], negatives_column="negatives")
GOOD = b'{"id": "a", "text": "b", "query": "q", "passage": "p", "label": "neutral", "_id": "1"}\n'

LINE_READERS: dict[str, Callable[[str], Any]] = {
    "training": lambda path: list(read_examples(path, NLI)),
    "evaluation": lambda path: list(read_rows(path)),
    "reading comprehension": read_squad,
    "texts to compare with": lambda path: list(evaluation_texts(path)),
}


def rows_of(path: Path, kept: list[pa.Field] | None = None) -> list[dict[str, Any]]:
    columns = CorpusColumns(kept=tuple(field.name for field in kept or []))
    shard = Shard(str(path), path.stat().st_size)
    found: list[dict[str, Any]] = pa.concat_tables(
        read_shard(shard, 0, columns, kept or [], 100)
    ).to_pylist()
    return found


def refusal(read: Callable[[str], Any], path: Path) -> str:
    """What a reader says that refuses a file; "" where it doesn't."""
    try:
        read(str(path))
    except StellaError as error:
        return str(error)
    return ""


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(streams, "LONGEST_LINE", 200)
    return 200


# ---------------------------------------------------------------- long lines


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("size", [200, 201, 401, 5_000])
def test_a_line_above_the_bound_is_one_reject_between_its_neighbours(
    tmp_path: Path, short_lines: int, ending: str, size: int
) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    long = b'{"id": "l", "text": "' + b"x" * (size - 23) + b'"}'
    data = GOOD + long + b"\n" + GOOD + long  # the last without a line end
    path.write_bytes(packed(data, ending))
    found = rows_of(path)
    assert [row["row"] for row in found] == [0, 1, 2, 3]
    assert [row["doc_id"] for row in found[::2]] == ["a", "a"]
    told = [row["reason"] for row in found]
    # The line end counts.
    assert told[1] == (None if size < 200 else "the line is longer than 200 bytes")
    assert told[3] == (None if size < 201 else "the line is longer than 200 bytes")
    assert told[::2] == [None, None]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_bomb_of_one_line_takes_little_memory_and_its_neighbours_are_read(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(bomb(ending, 200))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    found = rows_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row["reason"] for row in found] == [
        None,
        "the line is longer than 33,554,432 bytes",
        None,
    ]
    assert peak < 5 * streams.LONGEST_LINE  # of more than six in the file


@pytest.mark.parametrize("name", LINE_READERS)
def test_a_line_above_the_bound_stops_what_needs_every_line(
    tmp_path: Path, short_lines: int, name: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b" " * 201 + b"{}\n")
    with pytest.raises(CorpusError, match="line 1: the line is longer than 200"):
        LINE_READERS[name](str(path))


def test_a_retrieval_folder_s_lines_are_bounded_too(tmp_path: Path, short_lines: int) -> None:
    for name, data in (("corpus.jsonl", b'{"_id": 1, "text": "a"}'), ("qrels.tsv", b"a\t" * 150),
                       ("queries.jsonl", b'{"_id": 1, "text": "a"}')):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=r"qrels.tsv: line 1: the line is longer than 200 bytes"):
        read_folder(str(tmp_path))


@pytest.mark.parametrize("filling", ["x" * 300, "x\n" * 150, '","' * 100, '\n","' * 60])
def test_a_row_of_csv_above_the_bound_refuses_the_file_whatever_fills_it(
    tmp_path: Path, short_lines: int, filling: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'id,text\n1,a\n2,"{filling}"\n', "utf-8")
    with pytest.raises(BadShard, match="a row is longer than 200 characters; a quote may be"):
        rows_of(path)
    path.write_text(f'query,passage,label\n1,"{filling}",neutral\n', "utf-8")
    with pytest.raises(CorpusError, match="a row is longer than 200 characters"):
        list(read_examples(str(path), NLI))
    with pytest.raises(CorpusError, match="a row is longer than 200 characters"):
        list(read_rows(str(path)))
    with pytest.raises(CorpusError, match="a row is longer than 200 characters"):
        list(evaluation_texts(str(path)))


def test_many_short_rows_of_csv_never_add_up_to_a_long_one(
    tmp_path: Path, short_lines: int
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "1,a\n" * 500, "utf-8")
    assert len(rows_of(path)) == 500
    path.write_text("query,passage,label\n" + "1,a,neutral\n" * 500, "utf-8")
    assert len(list(read_examples(str(path), NLI))) == len(list(read_rows(str(path)))) == 500
    assert len(list(evaluation_texts(str(path)))) == 1_500


def test_a_tree_that_is_too_large_to_be_read_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LARGEST_TREE", 100)
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b" " * 101))
    for read in (LINE_READERS["reading comprehension"], LINE_READERS["texts to compare with"]):
        with pytest.raises(CorpusError, match="more than 100 bytes is too large to be read whole"):
            read(str(path))


# ---------------------------------------------------------------- deep nesting


@pytest.mark.parametrize("depth", [900, 1_000, 1_020, 1_100, 100_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_line_of_deep_nesting_costs_only_itself(
    tmp_path: Path, depth: int, begin: bytes, end: bytes
) -> None:
    path = tmp_path / "a.jsonl"
    deep = begin * depth + b"1" + end * depth
    bare = b'{"id": "x", "text": "t", "tag": ' + deep + b"}"
    path.write_bytes(GOOD + deep + b"\n" + bare + b"\n" + bare[:-1] + b"\n" + GOOD)
    for kept in ([], [pa.field("tag", pa.string())], [pa.field("tag", pa.int64())]):
        if kept:
            path.write_bytes(path.read_bytes().replace(b'"id": "a"', b'"id": "a", "tag": null'))
        found = rows_of(path, kept)
        assert [row["row"] for row in found] == [0, 1, 2, 3, 4]
        assert [row["reason"] for row in (found[0], found[4])] == [None, None]
        assert found[1]["reason"] or found[1]["doc_id"] is None
        assert found[3]["reason"]
        assert all("\n" not in (row["reason"] or "") for row in found)


@pytest.mark.parametrize("name", LINE_READERS)
@pytest.mark.parametrize("field", ["label", "id", "data", "qas", "context", "query", "answers"])
def test_deep_nesting_is_one_line_wherever_it_stands(tmp_path: Path, name: str, field: str) -> None:
    path = tmp_path / "a.jsonl"
    row = {"query": "q", "passage": "p", "label": "neutral", "context": "c", "question": "q",
           "id": "x", "answers": []}  # fmt: skip
    deep = "[" * 1_010 + "]" * 1_010
    path.write_text(json.dumps(row | {field: "@"}).replace('"@"', deep) + "\n", "utf-8")
    said = refusal(LINE_READERS[name], path)
    assert len(said.splitlines()) <= 1
    assert len(said) < 400


@pytest.mark.parametrize(("depth", "plain"), [(31, False), (32, True), (600, True)])
def test_a_kept_column_that_is_nested_deeply_is_text(
    tmp_path: Path, depth: int, plain: bool
) -> None:
    deep = '{"a": ' * depth + "1" + "}" * depth
    (tmp_path / "a.jsonl").write_text(f'{{"id": 1, "text": "一", "tag": {deep}}}\n', "utf-8")
    columns = CorpusColumns(kept=("tag",))
    (field,) = kept_fields(find_shards([str(tmp_path)]), columns, None)
    assert pa.types.is_string(field.type) == plain


def test_deep_negatives_in_csv_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    deep = "[" * 5_000 + "]" * 5_000
    path.write_text(f"query,passage,negatives\nq,p,{deep}\n", "utf-8")
    with pytest.raises(CorpusError, match=r"column negatives is .*, expected a list of texts"):
        list(read_examples(str(path), PAIRS))


def test_a_value_is_shown_in_a_few_characters() -> None:
    assert [brief(None), brief("a" * 99, 5), brief([1])] == ["null", "'aaaa", "[1]"]
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert brief(deep) == "a deeply nested list"


# ---------------------------------------------------------------- what messages hold


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "\ud800", "\x00", "\u2028", "\u202e", "\r"])
def test_a_message_is_one_printable_line_whatever_a_name_holds(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f'id,"{name}"\n1,a\n'.encode(errors="surrogatepass"))
    with pytest.raises(BadShard, match="no column text; it has id, ") as caught:
        rows_of(path)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said.splitlines()) == 1
    said.encode()
    # As Ray hands it on: pickled, or as a traceback's text.
    assert str(pickle.loads(pickle.dumps(caught.value))) == said
    again = stella_error_in(RuntimeError(f"stella_ray.errors.BadShard: {said}"))
    assert isinstance(again, BadShard)
    assert str(again) == said


def test_a_message_is_bounded_and_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"中" * 100_000: 1}) + "\n", "utf-8")
    with pytest.raises(BadShard) as caught:
        rows_of(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: no column id, text; it has 中中")
    assert said.endswith("Say which to read with --doc_id_column, --text_column and --keep_columns")
    assert len(said) <= MOST_CHARACTERS


def test_chinese_spaces_stay_in_messages() -> None:
    assert str(CorpusError("甲\u3000乙: 好")) == "甲\u3000乙: 好"


# ---------------------------------------------------------------- parquet


def test_a_footer_that_counts_other_rows_than_there_are_is_a_bad_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "c"]}), path)
    data = path.read_bytes()
    # Thrift's compact form: field 3, an i64, zigzag 3; behind it field 4, a list of a struct.
    assert data.count(b"\x16\x06\x19\x1c") == 1
    path.write_bytes(data.replace(b"\x16\x06\x19\x1c", b"\x16\x0a\x19\x1c"))
    with pytest.raises(BadShard, match="3 rows where the footer counts 5; expected a whole file"):
        rows_of(path)


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_a_time_that_python_cannot_hold_is_one_line(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.parquet"
    times = pa.array([2**62, 0], pa.timestamp(unit))
    pq.write_table(pa.table({"query": ["q"] * 2, "passage": ["p"] * 2, "label": times}), path)
    with pytest.raises(CorpusError, match=r"rows? 0 .*from 0.*: "):
        list(read_examples(str(path), NLI))
