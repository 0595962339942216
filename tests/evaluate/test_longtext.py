"""Long-text evaluation with an encoder that reads so many characters and no more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stella_ray.errors import CorpusError, SettingsError
from stella_ray.evaluate.longtext import evaluate_long, find_long_sets, read_long_set
from stella_ray.evaluate.questions import LongSet, Question
from stella_ray.evaluate.results import TaskResult

FILL = "山水日月金木火土"
STARTS = (10, 200, 300, 600, 1_100)


def a_set(name: str = "a", first: int = 0, per_bucket: int = 4) -> LongSet:
    """Documents of 1,200 characters alike but for one, which is the question and the answer."""
    documents, questions = [], []
    for number in range(per_bucket * len(STARTS)):
        own, start = chr(0x5000 + first + number), STARTS[number % len(STARTS)]
        text = FILL * 150
        documents.append(text[:start] + own + text[start + 1 :])
        questions.append(Question(f"{name}{number:03}", own, {number: 1}, start))
    return LongSet(name, documents, questions, {"questions": len(questions)})


class Reader:
    """An encoder that knows which characters stand in the first `reach` of a text, no order."""

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.calls: list[Sequence[str]] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(texts)
        out = np.zeros((len(texts), 256), np.float32)
        for row, text in enumerate(texts):
            for character in text[: self.reach]:
                if 0x5000 <= ord(character) < 0x5100:
                    out[row, ord(character) - 0x5000] = 1
        return out


def by_ranking(found: list[TaskResult]) -> dict[str, TaskResult]:
    return {one.ranking: one for one in found}


def test_an_encoder_of_512_characters_falls_on_answers_behind_them_and_a_longer_one_does_not() -> (
    None
):
    whole = by_ranking(list(evaluate_long([a_set()], Reader(1_200))))["vectors"]
    half = by_ranking(list(evaluate_long([a_set()], Reader(512))))["vectors"]
    assert [row["recall@1"][0] for row in whole.facts["positions"]] == [1, 1, 1, 1, 1]
    assert [row["recall@1"][0] for row in half.facts["positions"]] == [1, 1, 1, 0, 0]
    # Documents without a difference tie, and the first five of the set stand first: two by chance.
    assert [row["recall@5"][0] for row in half.facts["positions"]] == [1, 1, 1, 0.25, 0.25]
    assert [row["bucket"] for row in half.facts["positions"]] == [
        "0-128", "128-256", "256-512", "512-1024", "1024+"
    ]  # fmt: skip
    assert half.metrics["recall@1"] == pytest.approx(12 / 20)
    assert half.metrics["long/recall@5"] == pytest.approx(2 / 8)
    low, high = half.facts["positions"][3]["recall@5"][1:]
    assert 0 <= low < 0.25 < high <= 1


def test_bm25_and_hybrid_stand_beside_every_encoder() -> None:
    found = by_ranking(list(evaluate_long([a_set()], Reader(0), fingerprint="f")))
    assert list(found) == ["vectors", "bm25", "hybrid"]
    assert found["vectors"].metrics["recall@1"] == pytest.approx(1 / 20)  # knows nothing
    # One character is no pair, so these words find nothing either.
    assert found["bm25"].metrics["recall@5"] == 0
    asked = a_set()
    questions = [
        dataclasses.replace(q, text=text[q.start - 1 : q.start + 1])
        for q, text in zip(asked.questions, asked.documents, strict=True)
    ]
    found = by_ranking(
        list(evaluate_long([dataclasses.replace(asked, questions=questions)], Reader(512)))
    )
    assert found["bm25"].score == 1
    assert found["vectors"].score < found["hybrid"].score <= 1
    assert (found["bm25"].fingerprint, found["bm25"].facts["documents"]) == ("", 20)


def test_each_result_can_be_paired_by_question_and_place() -> None:
    (found, *_) = evaluate_long([a_set()], Reader(512))
    units = found.units["recall@5"]
    assert units.names == [f"a{i:03}" for i in range(20)]
    assert found.facts["starts"] == [STARTS[i % 5] for i in range(20)]
    assert np.mean(units.values) == found.score == found.metrics["recall@5"]
    again = TaskResult.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found


def test_prefixes_stand_before_what_the_encoder_sees_and_not_before_bm25s_words() -> None:
    reader = Reader(1_200)
    (*_, bm25, _) = evaluate_long([a_set()], reader, query_prefix="查：", passage_prefix="结：")
    (texts,) = reader.calls  # once, so that actors have all of it
    assert sum(text.startswith("结：") for text in texts) == 20
    assert sum(text.startswith("查：") for text in texts) == 20
    assert bm25.metrics["mrr@10"] == 0  # a prefix's pair would have found something


def test_one_pool_for_all_sets_is_harder_and_its_records_are_others() -> None:
    sets = [a_set("a"), a_set("b", first=100)]
    each = list(evaluate_long(sets, Reader(512)))
    both = list(evaluate_long(sets, Reader(512), pool="all"))
    assert [one.task for one in both[::3]] == ["a (all)", "b (all)"]
    assert both[0].facts["documents"] == 40
    assert both[3].metrics["recall@5"] < each[3].metrics["recall@5"]
    assert not {one.file_name for one in each} & {one.file_name for one in both}


def test_the_sets_own_places_are_kept_where_a_document_stands_in_two_sets() -> None:
    twice = [a_set("a"), a_set("b")]  # equal documents
    found = list(evaluate_long(twice, Reader(1_200), pool="all"))
    assert found[0].facts["documents"] == 20
    assert {one.metrics["recall@1"] for one in found[::3]} == {1}


def line(folder: Path, name: str) -> None:
    row = {"_id": "a", "context": FILL * 100 + "答案", "input": "答案？", "answers": ["答案"]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(row))


def test_sets_are_found_by_file_folder_or_folder_of_both(tmp_path: Path) -> None:
    line(tmp_path / "sets", "fieldqa.jsonl")
    inner = tmp_path / "sets/mine"
    inner.mkdir()
    (inner / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": FILL * 100 + "答案"}))
    row = {"_id": "q", "text": "答案？", "answer_start": 800}
    (inner / "queries.jsonl").write_text(json.dumps(row))
    (inner / "qrels.tsv").write_text("q\td\t1\n")
    (tmp_path / "sets/README.md").write_text("no set")
    found = find_long_sets([str(tmp_path / "sets")])
    assert list(found) == ["fieldqa", "mine"]
    assert find_long_sets([str(inner)]) == {"mine": str(inner)}
    sets = [read_long_set(path, name) for name, path in found.items()]
    assert [[one.start for one in each.questions] for each in sets] == [[800], [800]]
    with pytest.raises(CorpusError, match="is called mine too; rename one"):
        find_long_sets([str(inner), str(inner)])
    for nothing in (tmp_path / "nothing", tmp_path / "sets/README.md"):
        with pytest.raises(CorpusError, match="no set; expected a folder with corpus"):
            find_long_sets([str(nothing)])
    with pytest.raises(SettingsError, match="short_per_long -1 is below 0"):
        read_long_set(found["mine"], "mine", short_per_long=-1)
