"""BM25 in parts against the formula in float64 over everything."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.learn.bm25 import (
    K1,
    B,
    Statistics,
    best_in_part,
    numbers,
    score,
    statistics,
    tokens,
    vocabulary,
)
from stella_ray.learn.hits import HIT, NO_HIT, merged, ranking

TEXTS = st.text("黄河断流水 ab1，。", max_size=12)
CORPORA = st.lists(TEXTS, min_size=1, max_size=12)


def by_formula(query: str, documents: list[str]) -> np.ndarray:
    """Every document's score, float64 [documents]."""
    cut = [tokens(text) for text in documents]
    average = sum(map(len, cut)) / len(cut)
    out = np.zeros(len(cut))
    for token in tokens(query):
        n = sum(token in document for document in cut)
        idf = math.log(1 + (len(cut) - n + 0.5) / (n + 0.5))
        for i, document in enumerate(cut):
            if tf := document.count(token):
                out[i] += idf * tf / (tf + K1 * (1 - B + B * len(document) / average))
    return out


def searched(queries: list[str], documents: list[str], cuts: list[int], depth: int) -> np.ndarray:
    """The hits of a corpus that is cut into parts at these places, HIT [queries, depth]."""
    known = vocabulary(map(tokens, queries))
    asked = [numbers([query], known)[0] for query in queries]
    ids = numbers(documents, known)
    inside = [range(a, b) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True) if a < b]
    parts = [[ids[i] for i in rows] for rows in inside]
    whole = statistics([], len(known))
    for part in parts:
        whole += statistics(part, len(known))
    found = np.full((len(queries), depth), NO_HIT)
    for number, (rows, part) in enumerate(zip(inside, parts, strict=True)):
        places = np.asarray(rows, np.int64)
        found = merged(found, best_in_part(part, places, number, whole, asked, depth))
    return found


@settings(deadline=None)
@given(TEXTS, CORPORA, st.data())
def test_parts_give_the_scores_of_the_formula_over_everything(
    query: str, documents: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=3)))
    wanted = by_formula(query, documents)
    hits = searched([query], documents, cuts, depth=len(documents))[0]
    hits = hits[hits["place"] >= 0]
    assert sorted(hits["place"]) == np.flatnonzero(wanted).tolist()
    assert hits["score"] == pytest.approx(wanted[hits["place"]], rel=1e-6)
    assert (np.diff(hits["score"]) <= 0).all()


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), CORPORA, st.data())
def test_the_number_of_parts_changes_nothing(
    queries: list[str], documents: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=4)))
    one, several = (searched(queries, documents, where, depth=5) for where in ([], cuts))
    assert (one["place"] == several["place"]).all()
    assert (one["score"] == several["score"]).all()


@given(TEXTS, CORPORA)
def test_a_text_has_the_score_that_it_would_have_in_the_corpus(
    query: str, documents: list[str]
) -> None:
    known = vocabulary([tokens(query)])
    ids = numbers(documents, known)
    whole = statistics(ids, len(known))
    found = [score(numbers([query], known)[0], document, whole) for document in ids]
    assert found == pytest.approx(by_formula(query, documents).tolist())


def test_tokens_are_pairs_of_characters_lone_ones_and_words() -> None:
    assert tokens("黄河断流，雨。BM25与C") == ["黄河", "河断", "断流", "雨", "bm25", "与", "c"]
    assert tokens("deep learning") == ["deep", "learning"]
    assert tokens("，。 _!") == []


@given(st.text("黄河断流ab1，", max_size=12), st.data())
def test_width_case_and_spaces_in_chinese_make_no_difference(
    text: str, data: st.DataObject
) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isascii() else c for c in text.upper())
    assert unicodedata.normalize("NFKC", wide).casefold() == unicodedata.normalize("NFKC", text)
    assert tokens(wide) == tokens(text)
    at = data.draw(st.integers(0, len(text)))
    if not text[max(0, at - 1) : at + 1].isascii():
        assert tokens(f"{text[:at]} 　{text[at:]}") == tokens(text)


def test_statistics_of_parts_add_up() -> None:
    known = vocabulary([tokens("黄河断流")])
    texts = ["黄河", "断流断流", "长江"]
    whole = statistics(numbers(texts, known), len(known))
    parts = [statistics(numbers([text], known), len(known)) for text in texts]
    total: Statistics = parts[0] + parts[1] + parts[2]
    assert (total.documents, total.tokens) == (whole.documents, whole.tokens) == (3, 5)
    assert (total.frequencies == whole.frequencies).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 99)), max_size=20, unique_by=lambda x: x[1]
    ),
    st.integers(1, 8),
)
def test_a_ranking_is_by_score_and_then_by_place(rows: list[tuple[int, int]], depth: int) -> None:
    scores, places = (
        np.array([row[i] for row in rows], kind) for i, kind in ((0, "f4"), (1, "i8"))
    )
    found = ranking(scores, places, 0, depth)
    assert found.dtype == HIT
    wanted = sorted((-score, place) for score, place in rows)[:depth]
    there = found[found["place"] >= 0]
    assert [(-hit["score"], hit["place"]) for hit in there] == wanted
