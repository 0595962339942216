"""Which requests are chosen, in which order, and how many a budget allows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.errors import SettingsError
from stella_ray.learn.asking import AskSettings, Request, body, requests_about
from stella_ray.pipeline.answers import AnswerFiles, synthesis_folder
from stella_ray.pipeline.budget import Budget
from stella_ray.pipeline.choose import candidates, in_turn
from stella_ray.pipeline.endpoint import Answer
from tests.learn.test_asking import document

ASK = AskSettings(model="m")


def request(name: str, passage: str = "") -> Request:
    return Request(name, name, "question", "end", 0, 1, passage or name, 0)


@given(
    st.lists(st.integers(0, 30), min_size=4, max_size=4),
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=4, max_size=4),
    st.integers(1, 40),
)
def test_every_prefix_of_the_order_has_the_buckets_in_proportion(
    sizes: list[int], shares: list[float], most: int
) -> None:
    buckets = [
        [(n / 100, request(f"{b}-{n}")) for n in range(size)] for b, size in enumerate(sizes)
    ]
    got = [int(one.key[0]) for one in in_turn([own[::-1] for own in buckets], shares, most)]
    assert len(got) == min(most, sum(n for n, share in zip(sizes, shares, strict=True) if share))
    for end in range(1, len(got) + 1):
        counts = [got[:end].count(b) for b in range(4)]
        left = [b for b in range(4) if shares[b] and counts[b] < sizes[b]]
        if left:  # none of these is more than a turn behind another
            turns = [counts[b] / shares[b] for b in left]
            assert max(turns) <= min(turns) + 1 / min(shares[b] for b in left) + 1e-9


def test_the_longest_comes_first_and_a_shared_paragraph_is_one_document_s() -> None:
    short, long = request("a"), request("b", "段落")
    twin, own = request("c", "段 落"), dataclasses.replace(request("b", "段落"), key="again")
    order = in_turn(
        [[(0.0, short)], [], [], [(0.1, long), (0.2, twin), (1.1, own)]], [1, 1, 1, 1], 9
    )
    assert [one.key for one in order] == ["b", "a", "again"]


def test_a_window_gives_the_first_of_each_bucket_and_its_count_of_documents() -> None:
    texts = [document(n, 40) for n in range(9)]
    block = pa.table(
        {
            "doc_id": [*(str(n) for n in range(9)), "empty", None],
            "text": [*texts, None, texts[0]],
            "reason": pa.array([None] * 11, pa.string()),
        }
    )
    rows = candidates(block, ASK, 4).to_pylist()
    assert rows[0]["documents"] == 9
    everything = [one for n, text in enumerate(texts) for one in requests_about(str(n), text, ASK)]
    [bucket] = {bucket for bucket, *_ in everything}
    first = sorted(everything, key=lambda item: item[1])[:4]
    assert [(row["bucket"], row["key"]) for row in rows[1:]] == [(bucket, r.key) for *_, r in first]
    assert all(row["documents"] is None for row in rows[1:])


def test_a_budget_allows_what_surely_fits() -> None:
    some = [one for n in range(5) for *_, one in requests_about(str(n), document(n, 20), ASK)]
    free = {"most_tokens": None, "most_cost": None, "price_in": 1.0, "price_out": 3.0}
    assert Budget(**free).affordable(some, ASK, (10**9, 10**9)) == len(some)
    words = [sum(len(m["content"]) for m in body(one, ASK)["messages"]) for one in some]
    for count in range(len(some)):
        most = sum(words[:count]) * 2 + count * (ASK.answer_tokens + 32) + 100
        allowed = Budget(**{**free, "most_tokens": most}).affordable(some, ASK, (60, 40))
        assert allowed >= count
        assert sum(words[:allowed]) + allowed * ASK.answer_tokens + 100 <= most
    dear = Budget(**{**free, "most_cost": 0.001})
    assert dear.cost(400, 200) == pytest.approx(0.001)
    assert dear.affordable(some, ASK, (400, 200)) == 0


def test_answers_are_kept_by_window_and_found_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given_ones = [
        Answer("k1", raw="一\u2028行\n", prompt_tokens=3, completion_tokens=1),
        Answer("k2", raw=""),
    ]
    with synthesis_folder(str(out)) as folder:
        files = AnswerFiles(folder)
        files.add([*given_ones, Answer("k3", failure="no")], "m")
        files.add([Answer("k4", failure="no")], "m")
    [path] = (out / "answers").iterdir()
    assert [json.loads(line)["model"] for line in path.read_bytes().splitlines()] == ["m", "m"]
    (out / "answers/half.jsonl.part").write_text("{", encoding="utf-8")  # of a killed run
    with synthesis_folder(str(out)) as folder:
        again = AnswerFiles(folder)
    assert list(again.known.values()) == given_ones
    assert again.tokens() == (3, 1)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine", encoding="utf-8")
    for out in (str(tmp_path), str(tmp_path / "note")):
        with pytest.raises(SettingsError), synthesis_folder(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
