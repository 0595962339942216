"""Each publisher's format, and what is said of files that aren't right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stella_ray.errors import CorpusError
from stella_ray.evaluate.questions import Reading, locate
from stella_ray.evaluate.squad import read_squad


def saved(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def qa(name: str, question: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    said = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": question, "answers": said, **more}


def tree(*paragraphs: dict[str, Any]) -> dict[str, Any]:
    return {"version": "1", "data": [{"title": "甲", "id": "1", "paragraphs": list(paragraphs)}]}


def test_squads_tree_as_cmrc_and_drcd_have_it(tmp_path: Path) -> None:
    value = tree(
        {"id": "p1", "context": "北京是首都", "qas": [qa("a", "首都是哪里？", ("北京", 0))]},
        {"id": "p2", "context": "上海靠海", "qas": [qa("b", "什么靠海？", ("上海", 0), ("海", 3))]},
    )
    raw = read_squad(saved(tmp_path / "cmrc.json", value))
    assert raw.documents == ["北京是首都", "上海靠海"]
    assert [(one.name, one.text, one.relevance) for one in raw.asked] == [
        ("a", "首都是哪里？", {0: 1}),
        ("b", "什么靠海？", {1: 1}),
    ]
    assert raw.asked[1].answers == {1: [("上海", 0), ("海", 3)]}


def test_cails_questions_without_an_answer_are_counted_and_yes_or_no_has_no_place(
    tmp_path: Path,
) -> None:
    value = {"data": [{"caseid": "1", "domain": "civil", "paragraphs": [{
        "casename": "纠纷", "context": "原告因感情破裂离婚", "qas": [
            qa("1_1", "因何离婚？", ("感情破裂", 4), ("因感情破裂", 2), is_impossible="false"),
            qa("1_2", "是否离婚？", ("YES", -1), is_impossible="false"),
            qa("1_3", "孩子几岁？", ("", -1), is_impossible="true"),
        ],
    }]}]}  # fmt: skip
    raw = read_squad(saved(tmp_path / "cail.json", value))
    assert [one.name for one in raw.asked] == ["1_1", "1_2"]
    assert raw.counts["questions without an answer"] == 1
    starts = [locate(raw.documents[0], one.answers[0]) for one in raw.asked]
    # 感情破裂 is one character out of step; the other annotator's answer isn't.
    assert starts == [(2, True), (-1, False)]


def test_chinese_squads_unanswerable_questions_are_counted(tmp_path: Path) -> None:
    impossible = {"question": "谁？", "id": "x", "answers": [], "is_impossible": True,
                  "plausible_answers": [{"text": "甲", "answer_start": 0}]}  # fmt: skip
    value = tree({"context": "甲乙", "qas": [impossible, qa("y", "什么？", ("乙", 1))]})
    raw = read_squad(saved(tmp_path / "squad.json", value))
    assert [one.name for one in raw.asked] == ["y"]
    assert raw.counts["questions without an answer"] == 1


def test_cmrcs_own_form_has_other_names_and_bare_answers(tmp_path: Path) -> None:
    value = [{"context_id": "T", "context_text": "甲乙丙", "title": "题", "qas": [
        {"query_id": "T_1", "query_text": "乙是谁？", "answers": ["乙", "乙丙"]}]}]  # fmt: skip
    raw = read_squad(saved(tmp_path / "cmrc.json", value))
    assert (raw.asked[0].name, raw.asked[0].answers) == ("T_1", {0: [("乙", None), ("乙丙", None)]})


def test_longbenchs_lines_and_the_hubs_with_line_separators_inside_of_texts(
    tmp_path: Path,
) -> None:
    long = {
        **{
            "input": "谁\u2028来？",
            "context": "甲\u2028来\u0085了",
            "answers": ["来"],
            "_id": "f0",
        },
        **{"length": 5, "dataset": "multifieldqa_zh", "language": "zh", "all_classes": None},
    }
    hub = {"id": 7, "context": "乙走了", "question": "谁走？",
           "answers": {"text": ["乙"], "answer_start": [0]}}  # fmt: skip
    path = tmp_path / "lines.jsonl.gz"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in (long, hub)) + "\n\n"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.encode()))
    raw = read_squad(str(path))
    assert raw.documents == ["甲\u2028来\u0085了", "乙走了"]
    assert [(one.name, one.answers) for one in raw.asked] == [
        ("f0", {0: [("来", None)]}),
        ("7", {1: [("乙", 0)]}),
    ]


def test_equal_documents_are_one_and_equal_questions_have_all_their_documents(
    tmp_path: Path,
) -> None:
    value = tree(
        {"context": "被告认罪", "qas": [qa("b", "认罪吗？ ", ("认罪", 2))]},
        {"context": "被告不认", "qas": [qa("a", "认罪吗？", ("不认", 2))]},
        {"context": "被告认罪", "qas": [qa("c", "谁认罪？", ("被告", 0))]},
    )
    raw = read_squad(saved(tmp_path / "a.json", value))
    assert raw.documents == ["被告认罪", "被告不认"]
    assert [(one.name, one.relevance) for one in raw.asked] == [
        ("a", {1: 1, 0: 1}),  # the least id names it, whatever the order of the file
        ("c", {0: 1}),
    ]
    assert raw.counts["questions of the same words"] == 1


def test_every_text_is_converted(tmp_path: Path) -> None:
    value = tree({"context": "ABC", "qas": [qa("a", "B?", ("B", 1))]})
    raw = read_squad(saved(tmp_path / "a.json", value), Reading(convert=str.lower))
    assert (raw.documents, raw.asked[0].text) == (["abc"], "b?")
    assert raw.asked[0].answers == {0: [("b", 1)]}


def test_questions_without_a_text_are_refused_left_out_or_asked_as_one_says(
    tmp_path: Path,
) -> None:
    value = tree({"context": "甲乙", "qas": [qa("a", "", ("甲", 0)), qa("b", "谁？", ("乙", 1))]})
    path = saved(tmp_path / "a.json", value)
    with pytest.raises(
        CorpusError, match=r"qas\[0\]: the question is '', .* empty_questions leave"
    ):
        read_squad(path)
    for how, names in {"leave_out": ["b"], "ask": ["a", "b"]}.items():
        raw = read_squad(path, Reading(empty_questions=how))  # type: ignore[arg-type]
        assert [one.name for one in raw.asked] == names
        assert raw.counts["questions without a text"] == 1


GOOD = qa("a", "谁？", ("甲", 0))
BAD = {
    "data[0].paragraphs[0].qas[1]: id 'a' stands twice, first at": [GOOD, GOOD],
    "data[0].paragraphs[0].qas[0]: no question or query_text or input; it has id": [{"id": "a"}],
    "data[0].paragraphs[0].qas[0]: the question is ' ', expected a text": [qa("a", " ")],
    "data[0].paragraphs[0].qas[0]: 5, expected an object with question": [5],
    "data[0].paragraphs[0].qas[0]: an answer is {'text': '甲', 'answer_start': '0'}, expected": [
        qa("a", "谁？", ("甲", "0"))  # type: ignore[arg-type]
    ],
    "no questions; expected SQuAD's tree": [],
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_question_is_named_by_file_and_path(message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "bad.json", tree({"context": "甲乙", "qas": BAD[message]}))
    with pytest.raises(CorpusError) as error:
        read_squad(path)
    assert str(error.value).startswith(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_document_or_file_is_named(tmp_path: Path) -> None:
    for value, message in {
        '{"data": [{"paragraphs": [{"context": "", "qas": []}]}]}': "[0]: the document is ''",
        '{"data": [{"title": "甲"}]}': "data[0]: no context or context_text; it has title",
        '{"data": [{"paragraphs": [{"context": "甲", "qas": 1}]}]}': "qas is 1, expected a list",
        '{"data": [': "no JSON",
        "[3]": "[0]: 3, expected an object",
    }.items():
        path = tmp_path / "bad.json"
        path.write_text(value, encoding="utf-8")
        with pytest.raises(CorpusError) as error:
            read_squad(str(path))
        assert str(error.value).startswith(str(path))
        assert message in str(error.value)
    lines = tmp_path / "bad.jsonl"
    lines.write_text('{"context": "甲", "input": "谁？", "answers": ["甲"]}\n{"context": \n')
    with pytest.raises(CorpusError, match=r"bad.jsonl: line 2: no JSON"):
        read_squad(str(lines))
