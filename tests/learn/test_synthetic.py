"""Filters of a model's answers, each by what it must let through and what it must not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.learn.ngrams import containment, plain, shingles
from stella_ray.learn.synthetic import (
    Seen,
    chinese_share,
    counted,
    fault_of,
    judge,
    longest_common,
    query_in,
    ranks,
)

PASSAGE = "黄河在一九九七年断流二百二十六天，河口无水入海，是有记载以来最严重的一次。"
QUERY = "黄河枯得最厉害那年停流多少天？"


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        ('{"question": "几天？"}', "几天？"),
        ('```json\n{"question": " 几天？ "}\n```', "几天？"),
        ('<think>\n想一想\n</think>\n\n{"question": "几天？"}', "几天？"),
        ("问题：几天？", "几天？"),
        ("“几天？”", "几天？"),
        ('{"sentence": "几天？"}', None),
        ('{"question": ["几天？"]}', None),
        ('{"question": "几天？"', None),
        ('["几天？"]', None),
        ("好的，下面是问题：\n几天？", None),
        ('{"question": "几天？\\n几年？"}', None),
        ('{"question": ""}', None),
        ("", None),
    ],
)
def test_a_query_is_found_in_the_json_or_in_one_line(raw: str, query: str | None) -> None:
    assert query_in(raw, "question") == query


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (QUERY, None),
        ("几天？", "length"),
        ("黄河断流" * 17, "length"),
        ("How many days did the river 黄河 run dry?", "language"),
        ("2024-11-23 10:00", "language"),
        ("这段时间黄河停流多少天？", "pronoun"),
        ("本文说黄河停流多少天？", "pronoun"),
        ("文中的黄河停流多少天？", "pronoun"),
        ("根据上文，黄河停流多少天？", "pronoun"),
        ("日本文化对黄河有何影响？", None),
        ("马王堆地下文物何时出土？", None),
        ("她的英文中常见哪些错误？", None),
        ("一九九七年断流二百二十六天吗？", "copied"),
        ("河口无水入海，哪一年的事啊？", None),
        ("河口 无水 入海，哪年？", "copied"),
    ],
)
def test_faults_of_a_query_by_itself(query: str, reason: str | None) -> None:
    assert fault_of(query, PASSAGE) == reason


@pytest.mark.parametrize(
    ("raw", "finish", "reason"),
    [
        (f'{{"question": "{QUERY}"}}', "stop", None),
        (f'{{"question": "{QUERY}"}}', "length", "cut off"),
        ("", "content_filter", "cut off"),
        ("{}", "stop", "form"),
        ("是", "stop", "length"),
    ],
)
def test_an_answer_is_judged_by_how_it_ended_first(
    raw: str, finish: str, reason: str | None
) -> None:
    assert judge(raw, finish, "question", PASSAGE).reason == reason


@given(st.text("一二三", max_size=12), st.text("一二三", max_size=20))
def test_the_longest_common_piece_is_that_of_trying_all(query: str, passage: str) -> None:
    pieces = {query[i:j] for i in range(len(query)) for j in range(i + 1, len(query) + 1)}
    assert longest_common(query, passage) == max(
        (len(p) for p in pieces if p in passage), default=0
    )


@given(st.lists(st.text("一二三四五 ", min_size=1, max_size=12), max_size=12))
def test_a_query_is_taken_unless_it_is_nearly_one_that_was(queries: list[str]) -> None:
    seen, taken = Seen(), []
    for query in queries:
        alike = any(
            plain(query) == plain(one) or containment(shingles(query), shingles(one)) >= 0.8
            for one in taken
        )
        assert seen.add(query) == (not alike)
        if not alike:
            taken.append(query)


def test_ranks_are_those_of_sorting_the_whole_pool() -> None:
    chance = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        vectors = chance.normal(size=(count, 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    pool, queries = unit(50), unit(70)
    own = np.array([i if i < 50 else -1 for i in range(70)])
    passages = np.concatenate([pool, unit(20)])
    place, similar = ranks(queries, passages, own, pool, block=16)
    for i in range(70):
        others = np.delete(pool, i, axis=0) if i < 50 else pool
        score = queries[i] @ passages[i]
        assert similar[i] == pytest.approx(score, abs=1e-6)
        assert place[i] == 1 + int((others @ queries[i] > score).sum())


def test_every_reason_is_counted() -> None:
    counts = counted(["form", None, "form", "copied"])
    assert (counts["form"], counts["copied"], counts["round trip"]) == (2, 1, 0)
    assert chinese_share("ABC 三") == 0.25
