"""Words are found in Chinese as they stand, alone and fused with vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stella_ray.errors import SettingsError, TableError
from stella_ray.rows import table_schema
from stella_ray.table.index import tidy
from stella_ray.table.search import search
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import DIM, ENCODER, add, addresses_of, numbered, unit_vectors

QUERY = unit_vectors(["the query"])[0]


def ids(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["doc_id"] for hit in hits]


SENTENCES = {
    "river": "长江流域的水稻种植历史悠久",
    "rice": "水稻是一种粮食作物，水稻种在水田里",
    "city": "南京市长江大桥建成于一九六八年",
    "code": 'GPU 与 CPU 的区别，见 ISO-8859-1 与 "AND" 一节',
    "surname": "茶圣陆羽",
}


@pytest.fixture
def worded(docs: VectorTable) -> VectorTable:
    """Five texts with a full-text index."""
    add(docs, list(SENTENCES), texts=list(SENTENCES.values()))
    tidy(docs)
    return docs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("水稻", {"rice", "river"}),
        ("长江", {"river", "city"}),
        ("大桥", {"city"}),
        ("茶", {"surname"}),
        ("gpu", {"code"}),
        ("  陆羽 \n", {"surname"}),
        ("昆仑", set()),
    ],
)
def test_words_are_found_inside_longer_ones_and_single_characters_too(
    worded: VectorTable, words: str, expected: set[str]
) -> None:
    hits = search(worded, text=words)
    assert expected <= set(ids(hits))
    assert set(ids(hits)[: len(expected)]) == expected
    assert all(hit["score"] > 0 for hit in hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def test_the_text_that_says_it_more_often_comes_first(worded: VectorTable) -> None:
    assert ids(search(worded, text="水稻"))[0] == "rice"
    hit = search(worded, text="水稻", limit=1)[0]
    assert set(hit) == {"doc_id", "title", "text", "score"}


@pytest.mark.parametrize(
    "words",
    [
        '"',
        "'",
        "AND",
        "水稻 AND NOT 长江",
        "(水稻",
        "text:水稻",
        "水稻~2^3",
        "*",
        "\\",
        "+ -",
        "。！？",
        "\x00",
        "\udcff",
        "水" * 5_000,
        "🙂",
        "' OR 1=1 --",
        "",
        "\ufeff",
        "ISO-8859-1",
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_words_that_look_like_syntax_are_plain_words(
    worded: VectorTable, words: str, both: bool
) -> None:
    hits = search(worded, text=words, vector=QUERY if both else None)
    assert len(hits) == 5 if both else len(hits) <= 5


def test_new_rows_are_found_by_their_words_before_they_are_indexed(worded: VectorTable) -> None:
    add(worded, ["late"], texts=["昆仑山在西边"])
    assert ids(search(worded, text="昆仑")) == ["late"]
    worded.commit([], addresses_of(worded, ["late"]))
    assert search(worded, text="昆仑") == []


def test_a_filter_holds_for_words_too(worded: VectorTable) -> None:
    assert ids(search(worded, text="水稻", filter="doc_id <> 'rice'")) == ["river"]
    with pytest.raises(SettingsError, match="--filter 'nope = 1' can't be answered"):
        search(worded, text="水稻", filter="nope = 1")


def test_words_need_stored_text_and_its_index(tmp_path: Path, docs: VectorTable) -> None:
    schema = table_schema([], False, DIM, pa.float32())
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    add(table, ["a"], schema=schema)
    with pytest.raises(TableError, match=r"stores no text, so .* --store_text true$"):
        search(table, text="水稻")
    assert search(docs, text="水稻") == [], "an empty table has neither rows nor index"
    add(docs, ["a"])
    with pytest.raises(TableError, match=r"has no full-text index, .* --index\.text true$"):
        search(docs, vector=QUERY, text="水稻")


def test_both_together_are_ranked_by_the_sum_of_reciprocal_ranks(worded: VectorTable) -> None:
    by_vector = ids(search(worded, vector=QUERY))
    by_text = ids(search(worded, text="长江水稻"))
    expected = {
        doc: sum(1 / (60 + ranking.index(doc) + 1) for ranking in (by_vector, by_text)
                 if doc in ranking)
        for doc in by_vector
    }  # fmt: skip
    hits = search(worded, vector=QUERY, text="长江水稻")
    assert {hit["doc_id"]: hit["score"] for hit in hits} == pytest.approx(expected)
    assert ids(hits) == sorted(expected, key=lambda doc: (-expected[doc], doc))
    assert ids(search(worded, vector=QUERY, text="长江水稻", limit=2)) == ids(hits)[:2]


def test_a_document_in_the_middle_of_both_rankings_beats_the_first_of_one(
    docs: VectorTable,
) -> None:
    names = ["by vector", "both", *numbered(30)]
    basis = np.eye(DIM, dtype=np.float32)
    near = basis[0] + 0.5 * basis[1]
    far = [-basis[0]] * 3 + [basis[2]] * 27
    vectors = np.stack([basis[0], near / np.linalg.norm(near), *far])
    texts = ["无", "水稻与其他许多许多事情", *["水稻"] * 3, *["无"] * 27]
    add(docs, names, texts=texts, vectors=vectors)
    tidy(docs)
    assert ids(search(docs, vector=basis[0], text="水稻"))[0] == "both"
