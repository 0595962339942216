"""Texts that two sides share: against brute force over every pair of texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.errors import CorpusError, SettingsError
from stella_ray.learn.evaluation_texts import evaluation_files, evaluation_texts
from stella_ray.learn.ngrams import containment, plain, shingles
from stella_ray.learn.overlap import IndexBuilder, OverlapIndex, touches
from stella_ray.learn.reading import Example

# Few characters, so that texts share strings often; wide, capital and spaced ones among them.
TEXTS = st.text("黄河断流Aａ 。", min_size=1, max_size=14)


def index_of(texts: list[tuple[str, int]], near_from: int = 5) -> tuple[OverlapIndex, list[str]]:
    builder = IndexBuilder(10_000, near_from)
    kept = [text for text, number in texts if builder.add(text, number)]
    return builder.build(), kept


@given(
    st.lists(st.tuples(TEXTS, st.integers(0, 2)), max_size=12),
    TEXTS,
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_matches_are_those_of_comparing_every_text(
    texts: list[tuple[str, int]], asked: str, threshold: float
) -> None:
    index, kept = index_of(texts)
    found = index.matches(asked, threshold)
    expected: dict[int, tuple[bool, float]] = {}
    for text, number in texts:
        equal = plain(text) == plain(asked)
        long = min(len(plain(text)), len(plain(asked))) >= 5
        share = 1.0 if equal else containment(shingles(text), shingles(asked)) if long else 0.0
        if equal or share >= threshold:
            expected[number] = max(expected.get(number, (False, 0.0)), (equal, share))
    assert {n: (m.equal, pytest.approx(m.share)) for n, m in found.items()} == expected
    for match in found.values():
        share = containment(shingles(kept[match.text]), shingles(asked))
        assert match.equal or share == pytest.approx(match.share)


def test_texts_of_up_to_four_characters_are_only_looked_for_word_for_word() -> None:
    index, _ = index_of([("黄河断流", 0), ("黄河断流的原因是什么", 0)])
    assert index.matches("黄河断流", 0.8)[0].equal
    assert index.matches("河断流的", 0.1) == {}
    assert not index.matches("黄河断流的原因", 0.8)[0].equal


def test_shorter_texts_than_near_from_are_only_looked_for_word_for_word() -> None:
    texts = [("黄河断流的原因是什么", 0), ("据记载，黄河断流的原因是什么，众说纷纭", 0)]
    index, _ = index_of(texts, near_from=12)
    assert index.matches("黄河断流的原因", 0.8) == {}
    assert index.matches("黄河断流的原因是什么呢，众说纷纭", 0.1)[0].text == 1


def test_a_row_says_which_of_its_sides_touches_which_set() -> None:
    index, _ = index_of(
        [("黄河哪一年断流最严重", 0), ("一九九七年断流二百二十六天", 0), ("试用期最长多久", 1)]
    )

    def kinds(query: str, passage: str, *negatives: str) -> dict[int, tuple[str, ...]]:
        example = Example(query, passage, list(negatives), 0.0)
        return {touch.set: touch.kinds for touch in touches(example, index, 0.8)}

    query, passage, other = "黄河哪一年断流最严重？", "一九九七年断流二百二十六天。", "别的事"
    assert kinds(other, other) == {}
    assert kinds(query, other) == {0: ("query_near",)}
    assert kinds(query[:-1], passage) == {0: ("query_equal", "passage_near", "pair_near")}
    assert kinds(query[:-1], passage[:-1]) == {0: ("query_equal", "passage_equal", "pair_equal")}
    assert kinds(query[:-1], "试用期最长多久") == {0: ("query_equal",), 1: ("passage_equal",)}
    assert kinds(other, other, "无关", "试用期最长 多久") == {1: ("negative_equal",)}
    assert kinds(other, other, "试用期最长多久呢", "试用期最长多久") == {
        1: ("negative_equal", "negative_near")
    }


def test_more_characters_than_allowed_are_refused() -> None:
    builder = IndexBuilder(8)
    builder.add("五个字符吧", 0)
    assert not builder.add("五个 字符吧", 0)
    with pytest.raises(SettingsError, match=r"max_characters 8 .*--max_characters"):
        builder.add("再五个字符", 0)


ROWS = [
    {"id": "q1", "text": "一问", "more": ["甲", " ", "乙"], "n": 3},
    {"id": "q2", "text": None, "more": []},
]
ASKED = [{"question": "问", "answers": [{"text": "答"}]}, {"question": "又问", "answers": []}]
PARAGRAPH = {"id": "p", "context": "文", "qas": ASKED}
SQUAD = {"version": "v1", "data": [{"title": "t", "paragraphs": [PARAGRAPH]}]}


def put(folder: Path, form: str) -> Path:
    path = folder / f"set.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif form == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "text"], ["q1", "一问"], ["q2", ""]])
    elif form == "json":
        path.write_text(json.dumps(SQUAD, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("form", "columns", "expected"),
    [
        ("parquet", [], ["一问", "甲", "乙"]),
        ("jsonl", [], ["一问", "甲", "乙"]),
        ("jsonl", ["more", "other"], ["甲", "乙"]),
        ("csv", [], ["一问"]),
        ("csv", ["id"], ["q1", "q2"]),
        ("json", [], ["文", "问", "又问"]),
        ("json", ["text"], ["答"]),
    ],
)
def test_texts_of_every_format_are_found(
    form: str, columns: list[str], expected: list[str], tmp_path: Path
) -> None:
    path = put(tmp_path, form)
    (tmp_path / "readme.md").write_text("no set", encoding="utf-8")
    assert evaluation_files(str(tmp_path)) == [str(path)]
    assert [one.text for one in evaluation_texts(str(path), columns)] == expected


def test_a_file_without_the_column_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    path = put(tmp_path, "jsonl")
    with pytest.raises(CorpusError, match="no text in question; it has id, text, more, n"):
        list(evaluation_texts(str(path), ["question"]))
