"""Where an answer stands, and which questions are asked."""

from __future__ import annotations

import random

import pytest

from stella_ray.errors import CorpusError
from stella_ray.evaluate.questions import Asked, RawSet, bucket, choose, locate


def test_an_answer_stands_where_it_is_said_to() -> None:
    text = "甲方欠款。乙方欠款。"
    assert locate(text, [("欠款", 7)]) == (7, True)  # not the first of two
    assert locate(text, [("欠款", 2)]) == (2, True)


def test_an_answer_that_stands_elsewhere_is_found_nearest_to_where_it_was_said_to() -> None:
    text = "欠款" + "。" * 20 + "欠款" + "。" * 20 + "欠款"
    assert locate(text, [("欠款", 20)]) == (22, False)
    assert locate(text, [("欠款", 40)]) == (44, False)
    assert locate(text, [("欠款", 900)]) == (44, False)


def test_an_answer_without_a_place_is_where_it_stands_first() -> None:
    assert locate("一二三二", [("二", None)]) == (1, True)


def test_an_answer_is_found_where_the_text_has_spaces_and_it_has_none() -> None:
    assert locate("又名 龙 尖，产于海", [("名龙尖", 0)]) == (1, False)


def test_of_several_annotators_the_first_place_counts() -> None:
    assert locate("因感情破裂离婚", [("感情破裂", 1), ("因感情破裂", 0)]) == (0, True)


@pytest.mark.parametrize("answers", [[("YES", -1)], [("没有", 3)], [("没有", None)], []])
def test_an_answer_that_is_not_in_the_text_has_no_place(answers: list[tuple[str, int]]) -> None:
    assert locate("因感情破裂离婚YES", answers)[0] == -1


def test_a_place_without_an_answer_must_be_inside_of_the_text() -> None:
    assert locate("一二三", [("", 2)]) == (2, True)
    assert locate("一二三", [("", 3)])[0] == -1


def test_buckets_begin_at_their_edges() -> None:
    edges = [0, 127, 128, 255, 256, 511, 512, 1023, 1024, 9_999, -1]
    assert [bucket(start) for start in edges] == [
        *["0-128"] * 2, *["128-256"] * 2, *["256-512"] * 2, *["512-1024"] * 2, *["1024+"] * 2,
        "unknown",
    ]  # fmt: skip


def raw_set(starts: list[int], **row: bool) -> RawSet:
    """A question for each start, of one long document of its own; -1 has no place."""
    text = "字" * 2_000
    raw = RawSet([text])
    for number, start in enumerate(starts):
        answers = {0: [("", start)]}
        raw.asked.append(Asked(f"q{number}", f"问{number}", {0: 1}, answers, row, f"line {number}"))
    return raw


def names(raw: RawSet, questions: str = "rule", per_long: float = 2.0, seed: int = 0) -> set[str]:
    return {one.name for one in choose(raw, "set", questions, per_long, seed).questions}


STARTS = [512, 511, 700, 0, 1, 2, 3, 4, -1]


def test_the_rule_asks_all_long_questions_and_two_short_ones_for_each() -> None:
    chosen = choose(raw_set(STARTS), "set", "rule", 2.0, 0)
    assert sorted(one.start >= 512 for one in chosen.questions) == [False] * 4 + [True] * 2
    assert chosen.counts == {
        "answers not in the text": 1, "documents": 1, "questions read": 9, "questions": 6,
        "long": 2, "short": 4,
    }  # fmt: skip
    assert len(names(raw_set(STARTS), per_long=0.5)) == 3
    assert len(names(raw_set(STARTS), per_long=99)) == 8


def test_the_same_short_questions_are_asked_whatever_the_order_of_the_file() -> None:
    raw = raw_set([600, 700, *range(100)])
    wanted = names(raw)
    random.Random(1).shuffle(raw.asked)
    assert names(raw) == wanted
    assert names(raw, seed=1) != wanted


def test_all_questions_are_asked_also_those_without_a_place() -> None:
    assert len(names(raw_set(STARTS), "all")) == 9


def test_a_field_of_the_questions_can_say_which_to_ask() -> None:
    raw = raw_set(STARTS, wanted=True)
    raw.asked += raw_set([1]).asked
    with pytest.raises(CorpusError, match="line 0: wanted is null, expected true or false"):
        names(raw, "wanted")
    raw.asked[-1:] = [Asked("other", "问", {0: 1}, {0: [("", 5)]}, {"wanted": False}, "line 9")]
    assert names(raw, "wanted") == {f"q{i}" for i in range(9)}


def test_a_set_without_long_questions_is_refused_by_the_rule() -> None:
    with pytest.raises(CorpusError, match="set: no answer lies past 512 characters in 2 questions"):
        names(raw_set([1, 2]))


def test_the_revision_changes_with_what_is_asked() -> None:
    one, same, other = (choose(raw_set(STARTS), "set", "rule", 2.0, seed) for seed in (0, 0, 1))
    assert one.revision == same.revision != other.revision
