"""Training examples from files of every format to rows by number; bad rows named."""

from __future__ import annotations

import gzip
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_ray.errors import CorpusError, SettingsError
from stella_ray.learn import examples
from stella_ray.learn.examples import ExampleStore, open_examples, text_key
from stella_ray.learn.mixing import ExampleStream
from stella_ray.learn.sources import ExampleSource
from tests.conftest import S3Place

PAIRS: list[dict[str, Any]] = [
    {"query": "一", "passage": "壹，第一", "negatives": ["二"]},
    {"query": "二", "passage": '贰 "quoted"\nline', "negatives": []},
    {"query": "三", "passage": "叁", "negatives": None},
    {"query": "一", "passage": "弌", "negatives": ["三", "四", "五"]},
]


def source(*files: Path | str, **settings: Any) -> ExampleSource:
    settings = {"name": "s", "kind": "pairs", "negatives_column": "negatives", **settings}
    if settings["kind"] != "pairs":
        settings["negatives_column"] = None
    return ExampleSource(files=[str(path) for path in files], **settings)


def opened(tmp_path: Path, *files: Path | str, **settings: Any) -> ExampleStore:
    return open_examples(source(*files, **settings), tmp_path / "cache")


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_jsonl(path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + jsonl(PAIRS) + b"\n")
    return path


def as_gzip(path: Path) -> Path:
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress(jsonl(PAIRS)))
    return path


def as_csv(path: Path) -> Path:
    import csv

    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "passage", "negatives", "more"])
        for row in PAIRS:
            negatives = row["negatives"]
            cell = "" if negatives is None else json.dumps(negatives)
            writer.writerow([row["query"], row["passage"], cell, "x"])
    return path


def as_parquet(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(PAIRS), path, row_group_size=2)
    return path


@pytest.mark.parametrize("write", [as_jsonl, as_gzip, as_csv, as_parquet])
def test_rows_of_every_format_are_found_by_number_in_any_order(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    store = opened(tmp_path, write(tmp_path / "pairs"))
    assert store.rows == 4
    rows = store.take(np.array([3, 0, 1, 2, 3]))
    assert [row["query"] for row in rows] == ["一", "一", "二", "三", "一"]
    assert rows[2]["passage"] == PAIRS[1]["passage"]
    assert [row["negatives"] for row in rows] == [
        ["三", "四", "五"],
        ["二"],
        [],
        [],
        ["三", "四", "五"],
    ]
    assert all(math.isnan(row["label"]) for row in rows)


def test_several_files_and_globs_are_one_store(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "a")
    as_csv(tmp_path / "b")
    assert opened(tmp_path, tmp_path / "a.*", tmp_path / "b.csv").rows == 8
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "folder/README.md").write_text("not read")
    as_gzip(tmp_path / "folder/below/c")
    as_parquet(tmp_path / "folder/d")
    assert opened(tmp_path, tmp_path / "folder").rows == 8


def test_rows_are_found_across_blocks_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "ROWS_PER_BLOCK", 3)
    path = tmp_path / "many.jsonl"
    path.write_bytes(jsonl([{"query": f"q{i}", "passage": f"p{i}"} for i in range(10)]))
    store = opened(tmp_path, path, negatives_column=None)
    rows = np.random.default_rng(0).integers(10, size=30)
    assert [row["query"] for row in store.take(rows)] == [f"q{i}" for i in rows]
    assert store._file.num_record_batches == 4


def test_a_store_is_built_once_for_each_content_and_way_of_reading(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "a")
    first = opened(tmp_path, path)
    built = (first.folder / "store.json").stat().st_mtime_ns
    again = opened(tmp_path, path, batch_size=7, name="another")
    assert again.folder == first.folder
    assert (again.folder / "store.json").stat().st_mtime_ns == built
    assert opened(tmp_path, path, negatives_column=None).folder != first.folder
    path.write_bytes(jsonl(PAIRS[:3]))
    assert opened(tmp_path, path).rows == 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_store_that_could_not_be_built_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([*PAIRS, {"query": "a", "passage": None}]))
    with pytest.raises(CorpusError):
        opened(tmp_path, path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_store_can_be_sent_to_another_process(tmp_path: Path) -> None:
    store = opened(tmp_path, as_jsonl(tmp_path / "a"))
    store.take(np.array([0]))
    sent = pickle.loads(pickle.dumps(store))
    assert sent.take(np.array([1]))[0]["query"] == "二"


def test_known_positives_are_those_of_all_rows_with_the_same_query(tmp_path: Path) -> None:
    store = opened(tmp_path, as_jsonl(tmp_path / "a"))
    keys = np.array([text_key(text) for text in ("三", "一")])
    known = store.known_positives(keys)
    assert set(known[0].tolist()) == {text_key("叁")}
    assert set(known[1].tolist()) == {text_key("壹，第一"), text_key("弌")}


def test_one_query_for_everything_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "MOST_KNOWN", 5)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"query": "q", "passage": f"p{i}"} for i in range(20)]))
    one = source(path, batch_size=20, negatives_column=None)
    store = open_examples(one, tmp_path / "cache")
    assert store.known_positives(np.array([text_key("q")] * 3)).shape == (3, 5)
    batch = ExampleStream(one, store, 0).batch(0, 0)
    assert np.array_equal(batch.known_keys[:, -1], batch.passage_keys)  # the own one always


def test_texts_that_differ_in_width_or_spaces_alone_count_as_the_same() -> None:
    assert text_key("ＡＢ 一 ") == text_key("AB一")
    assert text_key("ab") != text_key("AB")


def test_labels_of_scored_pairs_are_numbers_also_where_they_are_written_as_text(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.jsonl"
    rows = [{"query": "a", "passage": "b", "label": label} for label in ("5", 0, 2.5)]
    path.write_bytes(jsonl(rows))
    store = opened(tmp_path, path, kind="scored", lowest_score=0, highest_score=5)
    assert [row["label"] for row in store.take(np.arange(3))] == [5, 0, 2.5]
    with pytest.raises(CorpusError, match=r"row 0 .*5, out of range; expected 0 to 1"):
        opened(tmp_path, path, kind="scored", lowest_score=0, highest_score=1)


def test_nli_labels_are_ranked_by_the_order_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("query,passage,label\na,b,entailment\na,b,neutral\na,b,contradiction\n")
    assert [r["label"] for r in opened(tmp_path, path, kind="nli").take(np.arange(3))] == [2, 1, 0]
    path.write_text("query,passage,label\na,b,0\na,b,2\n")
    store = opened(tmp_path, path, kind="nli", label_order=["2", "1", "0"])
    assert [row["label"] for row in store.take(np.arange(2))] == [2, 0]


def test_one_negative_as_text_is_read_where_the_settings_say_so(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"query": "a", "passage": "b", "negatives": n} for n in ("c", None)]
    path.write_bytes(jsonl(rows))
    store = opened(tmp_path, path, negatives_are="text")
    assert [row["negatives"] for row in store.take(np.arange(2))] == [["c"], []]


GOOD = {"query": "a", "passage": "b"}
SCORED = {"kind": "scored", "lowest_score": 0, "highest_score": 5}

# Name: (the second row, settings, what the line must say after file and row)
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a missing column": ({"query": "a"}, {}, "no column passage; it has query"),
    "a null text": ({**GOOD, "passage": None}, {}, "column passage is null, expected text"),
    "a text that is a number": ({**GOOD, "query": 7}, {}, "column query is 7, expected text"),
    "an empty text": ({**GOOD, "query": " \n"}, {}, "column query is empty"),
    "negatives that are no list": ({**GOOD, "negatives": "c"}, {}, "negatives is 'c', expected a list"),
    "a null among the negatives": ({**GOOD, "negatives": ["c", None]}, {}, r"negatives\[1\] is null"),
    "a score out of range": ({**GOOD, "label": 6}, SCORED, "6, out of range; expected 0 to 5"),
    "a score that is NaN": ({**GOOD, "label": "nan"}, SCORED, "'nan', expected a finite number"),
    "a score that is a word": ({**GOOD, "label": "high"}, SCORED, "'high', expected a finite number"),
    "a score that is null": ({**GOOD, "label": None}, SCORED, "null, expected a finite number"),
    "a score that is true": ({**GOOD, "label": True}, SCORED, "True, expected a finite number"),
    "an NLI label of no order": ({**GOOD, "label": "-"}, {"kind": "nli"}, "'-', expected one of contradiction < "),
    "a line that is no object": ([1], {}, "expected a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_with_its_file_and_number(name: str, tmp_path: Path) -> None:
    row, settings, says = BAD[name]
    label = "neutral" if settings.get("kind") == "nli" else 1
    path = tmp_path / "bad.jsonl"
    path.write_bytes(jsonl([{**GOOD, "negatives": [], "label": label}, row]))
    with pytest.raises(CorpusError, match=rf"bad.jsonl: row 1 \(from 0\): .*{says}") as error:
        opened(tmp_path, path, **settings)
    assert "\n" not in str(error.value)


def test_a_line_without_negatives_has_none_but_a_file_without_them_is_a_wrong_setting(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([GOOD, {**GOOD, "negatives": ["c"]}]))
    store = opened(tmp_path, path)
    assert [row["negatives"] for row in store.take(np.arange(2))] == [[], ["c"]]
    with pytest.raises(CorpusError, match=r"a.jsonl: no column negs; it has query, passage, neg"):
        opened(tmp_path, path, negatives_column="negs")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.jsonl", b"{", r"a.jsonl: row 0 \(from 0\): no line of JSON"),
        ("a.csv", b"query,negatives\na,\n", "a.csv: no column passage; it has query, negatives"),
        ("a.csv", b"query,passage,negatives\na,b\n", "row 0 .*2 cells where the header has 3"),
        ("a.csv", b'query,passage,negatives\na,b,"', "a.csv: can't be read"),
        ("a.csv", b"query,passage,negatives\na,b,c\n", r"row 0 .*negatives is 'c', expected a list"),
        ("a.parquet", b"PAR1", "a.parquet: can't be read"),
        ("a.jsonl.gz", gzip.compress(jsonl(PAIRS))[:-9], "a.jsonl.gz: can't be read"),
        ("a.txt", b"a", "a.txt: not a format that is read here"),
    ],
)  # fmt: skip
def test_a_file_that_can_not_be_read_is_named(
    name: str, data: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=says):
        opened(tmp_path, tmp_path / name)


def test_a_file_that_is_not_there_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"none.jsonl: no such file; check the files of source 's'"
    ):
        opened(tmp_path, tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"weight": 0}, "weight 0"),
        ({"negative_share": 1.2}, "negative_share 1.2"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"loss_factor": math.nan}, "loss_factor nan"),
        ({"files": []}, "no files"),
        ({"kind": "scored"}, "negatives_column goes with kind pairs"),
        ({"kind": "nli", "negatives_column": None, "symmetric": True}, "symmetric goes with"),
        ({"label_order": ["a", "a"]}, "label_order .* orders nothing"),
    ],
)
def test_settings_that_can_not_hold_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=f"source 's': .*{says}"):
        ExampleSource(
            **{"name": "s", "kind": "pairs", "files": ["x"], "negatives_column": "n", **settings}
        )


def test_files_on_s3_are_read_too(s3: S3Place, s3_fs: Any, tmp_path: Path) -> None:
    s3_fs.pipe_file(f"{s3.bucket}/a.jsonl.gz", gzip.compress(jsonl(PAIRS)))
    for name in ("a.jsonl.gz", "*.gz"):
        store = open_examples(source(f"{s3.uri}/{name}"), tmp_path / "cache", s3.storage)
        assert store.rows == 4
    with pytest.raises(CorpusError, match="no such file"):
        open_examples(source(f"{s3.uri}/b.jsonl"), tmp_path / "cache", s3.storage)
