"""What is asked: paragraphs, target spans, and requests that depend on nothing else."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.errors import SettingsError
from stella_ray.learn.asking import (
    BUCKETS,
    AskSettings,
    body,
    paragraphs,
    requests_about,
    sentences,
    target_span,
)
from tests.conftest import HAN

ASK = AskSettings(model="m")


def document(number: int, count: int, length: int = 22) -> str:
    """A text of sentences of random characters, its own for each number."""
    chance = random.Random(number)
    return "".join("".join(chance.choices(HAN, k=length)) + "。" for _ in range(count))


@given(st.text("一二三。！？\n”a ", max_size=80))
def test_sentences_are_all_of_the_text(text: str) -> None:
    spans = sentences(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(a < b for a, b in spans) or text == ""


@given(st.text("一二三。\n", max_size=200), st.integers(16, 60), st.integers(1, 16))
def test_paragraphs_are_parts_in_order_of_at_most_so_many_characters(
    text: str, longest: int, shortest: int
) -> None:
    at = 0
    for part in paragraphs(text, shortest, longest):
        assert shortest <= len(part) <= longest
        at = text.index(part, at) + len(part)


def test_a_document_is_cut_behind_sentences_into_even_parts() -> None:
    parts = paragraphs(document(1, 100), 128, 1_000)
    assert "".join(parts) == document(1, 100)
    assert [len(part) for part in parts] == [759, 782, 759]
    assert paragraphs("无" * 2_500, 128, 1_000) == ["无" * 834, "无" * 833, "无" * 833]


@pytest.mark.parametrize(("position", "third"), [("start", 0), ("middle", 1), ("end", 2)])
@pytest.mark.parametrize("kind", ["question", "sentence"])
def test_spans_are_whole_sentences_of_their_third(kind: str, position: str, third: int) -> None:
    text = document(2, 40)
    ends = {end for _, end in sentences(text)} | {0}
    found = [target_span(text, kind, position, key) for key in range(50)]
    for span in found:
        assert span is not None
        start, end = span
        assert {start, end} <= ends
        assert len(text) * third / 3 - 23 <= start < end <= len(text) * (third + 1) / 3 + 23
        assert end - start == 23 if kind == "sentence" else end - start <= 160
    assert len(set(found)) > 5


def test_a_third_without_a_sentence_is_not_asked_about() -> None:
    assert target_span("无" * 900, "sentence", "middle", 0) is None
    assert target_span("无" * 900, "question", "middle", 0) == (0, 900)
    assert target_span("无" * 900, "question", "end", 0) is None


def test_requests_depend_on_document_and_settings_alone() -> None:
    text = document(3, 60)
    first = list(requests_about("d", text, ASK))
    assert first == list(requests_about("d", text, ASK))
    assert len(first) == 3
    assert [place // 1 for _, place, _ in first] == [0, 1, 2]
    assert len({one.key for *_, one in first}) == 3
    assert len({one.passage for *_, one in first}) == 2
    for change in ({"model": "n"}, {"temperature": 0.1}, {"seed": 1}, {"extra_body": '{"a": 1}'}):
        other = list(requests_about("d", text, dataclasses.replace(ASK, **change)))
        assert not {one.key for *_, one in first} & {one.key for *_, one in other}


def test_kinds_and_positions_are_about_as_frequent() -> None:
    ways = Counter(
        (one.kind, one.position)
        for number in range(300)
        for *_, one in requests_about(str(number), document(number, 30), ASK)
    )
    assert len(ways) == 6
    assert min(ways.values()) > 100


def test_buckets_are_by_length() -> None:
    for bucket, least in enumerate(BUCKETS):
        text = document(4, -(-least // 23))
        assert {found for found, *_ in requests_about("d", text, ASK)} == {bucket}
    assert list(requests_about("d", "无。" * 60, ASK)) == []


def test_the_whole_paragraph_and_the_span_are_in_the_words_braces_and_all() -> None:
    text = document(5, 20).replace("。", "{x}。")
    *_, one = next(iter(requests_about("d", text, dataclasses.replace(ASK, extra_body='{"n": 1}'))))
    told: dict[str, Any] = body(one, dataclasses.replace(ASK, extra_body='{"n": 1}'))
    words = told["messages"][1]["content"]
    assert one.passage in words
    assert words.endswith(one.passage[one.start : one.end])
    assert (told["n"], told["seed"], told["model"]) == (1, one.seed, "m")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kinds": ["question,answer"]}, "kinds .*'answer'.*question, sentence"),
        ({"positions": ["start", "start"]}, "each once"),
        ({"shortest": 2_000}, "leave no paragraph"),
        ({"shares": [1.0]}, "4 numbers"),
        ({"per_document": 0}, "per_document 0"),
        ({"temperature": 3.0}, "0 to 2"),
        ({"extra_body": "[]"}, "no JSON object"),
    ],
)
def test_settings_that_cannot_hold_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        dataclasses.replace(ASK, **wrong)


def test_words_may_be_separated_by_commas() -> None:
    assert dataclasses.replace(ASK, kinds=["question, sentence"]).kinds == ["question", "sentence"]
