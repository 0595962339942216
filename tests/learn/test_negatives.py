"""The filters of hard negatives, and what is taken of what they leave."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.errors import SettingsError
from stella_ray.learn.examples import open_examples, text_keys
from stella_ray.learn.hits import HIT, NO_HIT
from stella_ray.learn.mined import CANDIDATE, PAIR, Pairs
from stella_ray.learn.negatives import (
    Candidate,
    FilterSettings,
    Sieve,
    drawn,
    highest,
    picked,
    shortlist,
)
from tests.learn.test_examples import jsonl, source

POSITIVE = "黄河断流最严重的一年是一九九七年，河口二百二十六天无水入海"


def hits(*scores: float, depth: int = 8) -> np.ndarray:
    out = np.full(depth, NO_HIT)
    out["score"][: len(scores)] = scores
    out["place"][: len(scores)] = range(len(scores))
    assert out.dtype == HIT
    return out


def sieve(query: str = "何年断流最重", known: tuple[str, ...] = (), **more: Any) -> Sieve:
    keys = np.sort(text_keys(list(known)))
    return Sieve(query, keys, more.get("positives", [POSITIVE]), more.get("share", 0.8))


@given(st.floats(-1, 1), st.floats(0.5, 1))
def test_the_ceiling_is_never_above_the_positive(score: float, share: float) -> None:
    assert highest(score, share) <= score
    assert highest(1.0, share) == pytest.approx(share)
    assert highest(-0.2, 0.95) == pytest.approx(-0.21)


def test_window_and_ceiling_take_what_they_say() -> None:
    counts: Counter[str] = Counter()
    filters = FilterSettings(rank_from=2, rank_to=5, ceiling=0.9)
    found = hits(10, 9.5, 9, 8, 7, 6)
    ranks = shortlist(found, 10.0, 0.9, filters, counts)
    assert ranks.tolist() == [3, 4, 5]
    assert counts == {"hits": 6, "outside_window": 2, "above_ceiling": 1}


def test_a_pair_whose_positive_ranks_too_low_gets_nothing() -> None:
    counts: Counter[str] = Counter()
    filters = FilterSettings(rank_from=1, rank_to=5, positive_within=2)
    assert len(shortlist(hits(5, 4, 3, 2), 4.0, 0.95, filters, counts))
    assert not len(shortlist(hits(5, 4, 3, 2), 3.0, 0.95, filters, counts))
    assert counts["positive_too_low"] == 4


def test_no_hits_give_no_ranks() -> None:
    assert not len(shortlist(hits(), 0.0, 0.95, FilterSettings(), Counter()))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (POSITIVE, "positive_or_query"),
        (" 黄河　断流最严重的一年是一九九七年,河口二百二十六天无水入海 ", "positive_or_query"),
        ("何年 断流最重", "positive_or_query"),
        ("另一个答案ＡＢＣ", "positive_or_query"),
        (POSITIVE.replace("入海", "入湖"), "near_duplicate"),
        (f"据记载，{POSITIVE}。", "near_duplicate"),
        (POSITIVE[:12], "near_duplicate"),
        ("黄河在一九七二年第一次断流", None),
        ("断流", None),
    ],
)
def test_each_filter_knows_its_kind(text: str, why: str | None) -> None:
    known = ("另一个答案ABC", "第三个")
    assert sieve(known=known).fault(text) == why


def test_what_somebody_chose_may_be_near_but_not_an_answer() -> None:
    near = POSITIVE.replace("入海", "入湖")
    assert sieve().fault(near, chosen=True) is None
    assert sieve().fault(POSITIVE, chosen=True) == "positive_or_query"


def test_methods_take_turns_and_a_text_is_taken_once() -> None:
    counts: Counter[str] = Counter()

    def listed(source: str, *texts: str) -> Any:
        return iter([Candidate(source, text, text, i, 1.0, 2.0) for i, text in enumerate(texts)])

    lists = [listed("bm25", "一", "二", POSITIVE, "三"), listed("vector", "二 ", "四", "五", "六")]
    taken = picked(sieve(), lists, 5, counts)
    assert [(one.source, one.text) for one in taken] == [
        ("bm25", "一"), ("vector", "二 "), ("bm25", "三"), ("vector", "四"), ("vector", "五"),
    ]  # fmt: skip
    assert counts == {
        "bm25.taken": 2, "bm25.repeated": 1, "bm25.positive_or_query": 1, "vector.taken": 3,
    }  # fmt: skip


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 5))
def test_a_draw_is_a_choice_of_the_ranks_and_the_same_for_the_same_seed(
    count: int, most: int, seed: int
) -> None:
    ranks = np.arange(11, 11 + count)
    found = drawn(ranks, "random", most, seed, "bm25", 7)
    assert len(found) == min(most, count)
    assert len(set(found.tolist())) == len(found)
    assert set(found.tolist()) <= set(ranks.tolist())
    assert (found == drawn(ranks, "random", most, seed, "bm25", 7)).all()
    assert drawn(ranks, "first", most).tolist() == ranks[:most].tolist()


def test_a_version_tells_settings_apart() -> None:
    one, other = FilterSettings(), FilterSettings(ceiling=0.9)
    assert one.version == FilterSettings().version
    assert one.version != other.version
    assert one.version.startswith("1-")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank_from": 0}, "rank_from 0 and rank_to 210 are no window"),
        ({"rank_from": 5, "rank_to": 4}, "no window"),
        ({"ceiling": 0.0}, "ceiling 0.0 can't be"),
        ({"bm25_ceiling": float("nan")}, "bm25_ceiling nan"),
        ({"near_duplicate": -1.0}, "near_duplicate -1.0"),
        ({"positive_within": 211}, "positive_within 211 is beyond rank_to 210"),
    ],
)
def test_settings_that_can_not_hold_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        FilterSettings(**settings)


def test_pairs_know_all_answers_of_equal_queries(tmp_path: Path) -> None:
    rows = [
        {"query": "一", "passage": "壹", "negatives": ["二"]},
        {"query": "二", "passage": "贰", "negatives": None},
        {"query": "一 ", "passage": "弌", "negatives": []},
        {"query": "三", "passage": "贰", "negatives": []},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    pairs = Pairs(open_examples(source(tmp_path / "a.jsonl"), tmp_path / "cache"))
    found = pairs.take(1, 9)
    assert found.schema == PAIR
    assert found["row"].to_pylist() == [1, 2, 3]
    answers = pairs.answers(found)
    assert answers.texts == [["贰"], ["弌", "壹"], ["贰"]]
    assert [len(known) for known in answers.known] == [1, 2, 1]
    assert set(answers.known[1].tolist()) == set(text_keys(["壹", "弌"]).tolist())
    passages = pa.concat_tables(pairs.passages())
    assert passages.schema == CANDIDATE
    assert passages["text"].to_pylist() == ["壹", "贰", "弌"]
    assert passages["id"].to_pylist() == ["0", "1", "2"]
