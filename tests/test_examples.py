"""The example corpus: what its README and the demo say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.corpus import find_shards
from stella_ray.pipeline.formats import shard_format
from stella_ray.pipeline.shards import read_shard

EXAMPLES = Path(__file__).parents[1] / "examples"
CORPUS = str(EXAMPLES / "corpus")
KEPT = ("title", "url", "category")
LONG, LATE = 1_500, 1_100
"""Characters of a long text, and of what stands before an answer that is late in it."""


def read(shard: Any, number: int) -> list[dict[str, Any]]:
    kept = [pa.field(name, pa.string()) for name in KEPT]
    windows = read_shard(shard, number, CorpusColumns(kept=KEPT), kept, 64)
    return [row for window in windows for row in window.to_pylist()]


@pytest.fixture(scope="module")
def shards() -> list[list[dict[str, Any]]]:
    return [read(shard, number) for number, shard in enumerate(find_shards([CORPUS]))]


@pytest.fixture(scope="module")
def documents(shards: list[list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {row["doc_id"]: row for rows in shards for row in rows}


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    lines = (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_three_shards_are_of_three_formats():
    assert [shard_format(shard.path) for shard in find_shards([CORPUS])] == [
        ("parquet", None),
        ("jsonl", "gzip"),
        ("csv", None),
    ]


def test_each_of_the_300_rows_can_be_read(shards):
    assert [len(rows) for rows in shards] == [110, 100, 90]
    assert not [row["reason"] for rows in shards for row in rows if row["reason"]]


def test_every_row_has_every_column(shards):
    columns = ("doc_id", "text", *KEPT)
    assert all(
        row[name] and row[name].strip() for rows in shards for row in rows for name in columns
    )


def test_ids_urls_and_texts_are_unique(shards):
    rows = [row for rows in shards for row in rows]
    assert all(len({row[name] for row in rows}) == 300 for name in ("doc_id", "url", "text"))


def test_addresses_are_of_the_domain_reserved_for_examples(documents):
    assert all(row["url"].startswith("https://example.org/") for row in documents.values())


def test_texts_have_20_to_3_000_characters(documents):
    assert all(20 <= len(row["text"]) <= 3_000 for row in documents.values())


def test_at_least_12_texts_pass_1_024_tokens(documents):
    # A Chinese character is about one BERT token, so that no tokenizer is needed here.
    assert sum(len(row["text"]) > 1_100 for row in documents.values()) >= 12


def test_each_shard_holds_short_middle_and_long_texts(shards):
    for rows in shards:
        lengths = [len(row["text"]) for row in rows]
        assert sum(length < 100 for length in lengths) >= 5
        assert sum(300 <= length < LONG for length in lengths) >= 5
        assert sum(length > LONG for length in lengths) >= 5


def test_the_40_questions_differ_and_ask_of_documents_that_exist(questions, documents):
    assert len({line["question"] for line in questions}) == 40 == len(questions)
    assert len({line["doc_id"] for line in questions} & documents.keys()) == 40


def test_each_answer_stands_where_its_question_says(questions, documents):
    for line in questions:
        text = documents[line["doc_id"]]["text"]
        assert text.startswith(line["answer"], line["answer_start"]), line["question"]


def test_no_other_document_holds_an_answer(questions, documents):
    for line in questions:
        holders = [name for name, row in documents.items() if line["answer"] in row["text"]]
        assert holders == [line["doc_id"]], line["question"]


def test_a_third_of_the_questions_are_answered_late_in_a_long_text(questions, documents):
    late = [
        line
        for line in questions
        if line["answer_start"] >= LATE and len(documents[line["doc_id"]]["text"]) > LONG
    ]
    assert len(late) * 3 >= len(questions)
