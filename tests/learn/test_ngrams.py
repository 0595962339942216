"""Shared strings of characters: against sets of Python's strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.learn.ngrams import containment, plain, shingles

TEXTS = st.text("黄河断流 ABc一二三。\n", max_size=40)


def by_sets(text: str) -> set[str]:
    text = plain(text)
    return {text[i : i + 5] for i in range(len(text) - 4)} or ({text} if text else set())


@given(TEXTS, TEXTS)
def test_containment_is_that_of_sets_of_strings(a: str, b: str) -> None:
    ours, theirs = by_sets(a), by_sets(b)
    least = min(len(ours), len(theirs))
    expected = len(ours & theirs) / least if least else 0.0
    assert containment(shingles(a), shingles(b)) == pytest.approx(expected)


def test_width_case_and_spaces_make_no_difference() -> None:
    assert (shingles("ＡＢＣ　断流 一二三四") == shingles("abc断流一二三四")).all()


def test_a_text_is_contained_in_a_longer_one() -> None:
    short = "黄河断流最严重的一年是一九九七年"
    assert (
        containment(shingles(short), shingles("据记载，" + short + "，河口二百二十六天无水入海。"))
        == 1
    )
    assert containment(shingles(short), shingles("本合同自双方签字之日起生效，有效期三年。")) == 0
