"""Reading comprehension as its makers publish it: SQuAD's tree and its kin, and flat lines.

    {"data": [{"paragraphs": [{"context": …, "qas": [{"id", "question", "answers"}]}]}]}
        CMRC2018 (SQuAD's style), DRCD, CAIL2019, Chinese SQuAD
    [{"context_text": …, "qas": [{"query_id", "query_text", "answers"}]}]      CMRC2018's own
    {"_id", "context", "input", "answers"} a line                              LongBench
    {"id", "context", "question", "answers"} a line                            as the hub has SQuAD

Answers are [{"text", "answer_start"}], {"text": […], "answer_start": […]} or [text].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from stella_ray.errors import CorpusError, brief
from stella_ray.evaluate.questions import Answers, Asked, RawSet, Reading
from stella_ray.learn.reading import file_form, opened, read_tree
from stella_ray.storage import StorageSettings
from stella_ray.streams import whole_lines

ENDS = (".json", ".jsonl", ".ndjson")
CONTEXT = ("context", "context_text")
QUESTION = ("question", "query_text", "input")
ID = ("id", "query_id", "_id")
DEEPEST = 16
"""Lists in lists around a paragraph; SQuAD's has two."""


def read_squad(path: str, reading: Reading = Reading()) -> RawSet:
    """Read a set from one file.

    Documents are distinct texts. Questions of the same words are one question with all of their
    documents, under the least of their ids. Those that nobody answered are counted and left out.

    Args:
        path: .json (a tree) or .jsonl, .ndjson (an object a line), also .gz and .zst.
        reading: how.

    Raises:
        CorpusError: with the file and the line or the path in the tree.
    """
    raw = RawSet()
    numbers: dict[str, int] = {}
    seen: dict[str, str] = {}
    same: dict[str, list[Asked]] = {}
    for paragraph in _paragraphs(path, reading.storage):
        document = numbers.setdefault(reading.convert(paragraph.text), len(numbers))
        for where, row in paragraph.questions:
            text = reading.question(_value(row, QUESTION, where), where, raw.counts)
            name = _name(next((row[key] for key in ID if row.get(key) is not None), where), where)
            if name in seen:
                raise CorpusError(f"{where}: id {name!r} stands twice, first at {seen[name]}")
            seen[name] = where
            if text is None:
                continue
            said = _answers(row.get("answers"), where)
            if not said:
                raw.counts["questions without an answer"] += 1
                continue
            own = {document: [(reading.convert(answer), start) for answer, start in said]}
            one = Asked(name, text.strip(), {document: 1}, own, row, where)
            same.setdefault(one.text, []).append(one)
    if not seen:
        raise CorpusError(
            f"{path}: no questions; expected SQuAD's tree or lines of context and qas"
        )
    for group in same.values():
        group.sort(key=lambda one: one.name)
        raw.counts["questions of the same words"] += len(group) - 1
        first = group[0]
        answers_of: dict[int, list[tuple[str, int | None]]] = {}
        for one in group:
            for document, answers in one.answers.items():
                answers_of.setdefault(document, []).extend(answers)
        relevance = dict.fromkeys(answers_of, 1)
        raw.asked.append(
            Asked(first.name, first.text, relevance, answers_of, first.row, first.where)
        )
    raw.documents = list(numbers)
    return raw


@dataclass(frozen=True)
class _Paragraph:
    text: str
    questions: list[tuple[str, Mapping[str, Any]]]


def _paragraphs(path: str, storage: StorageSettings) -> Iterator[_Paragraph]:
    with opened(path, storage) as file:
        if file_form(path, ENDS) == ".json":
            yield from _below(_json(read_tree(path, file), path), path, "")
            return
        # Lines end at \n alone: texts hold U+2028 and U+0085, at which splitlines() would cut.
        for number, line in enumerate(whole_lines(path, file), 1):
            where = f"{path}: line {number}"
            if line.strip():
                yield from _below(_json(line, where), where, "")


def _below(value: Any, where: str, inside: str, depth: int = 0) -> Iterator[_Paragraph]:
    """Every paragraph under a value; `inside` is the path to it, of `depth` steps."""
    place = f"{where}: {inside}" if inside else where
    if depth > DEEPEST:
        raise CorpusError(f"{place}: nested too deep; expected SQuAD's tree")
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from _below(one, where, f"{inside}[{number}]", depth + 1)
        return
    if not isinstance(value, dict):
        raise CorpusError(f"{place}: {brief(value, 40)}, expected an object with context and qas")
    for key in ("data", "paragraphs"):
        if isinstance(value.get(key), list):
            yield from _below(value[key], where, f"{inside}.{key}".lstrip("."), depth + 1)
            return
    text = _value(value, CONTEXT, place)
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f"{place}: the document is {brief(text, 40)}, expected a text, not empty")
    if "qas" not in value:
        yield _Paragraph(text, [(place, value)])
    elif not isinstance(value["qas"], list):
        raise CorpusError(f"{place}: qas is {brief(value['qas'], 40)}, expected a list")
    else:
        at = place if inside else f"{place}: "
        yield _Paragraph(
            text,
            [
                _row(row, f"{at}.qas[{i}]".replace(": .", ": "))
                for i, row in enumerate(value["qas"])
            ],
        )


def _row(row: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, dict):
        raise CorpusError(
            f"{where}: {brief(row, 40)}, expected an object with question and answers"
        )
    return where, row


def _name(value: Any, where: str) -> str:
    if not isinstance(value, (str, int)):
        raise CorpusError(f"{where}: the id is {brief(value, 40)}, expected text or a number")
    return str(value)


def _value(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    for key in keys:
        if key in row:
            return row[key]
    raise CorpusError(f"{where}: no {' or '.join(keys)}; it has {', '.join(row) or 'nothing'}")


def _answers(value: Any, where: str) -> Answers:
    """Those that have a text."""
    if isinstance(value, dict):
        texts, starts = value.get("text", []), value.get("answer_start", [])
        if not isinstance(texts, list) or not isinstance(starts, list):
            raise CorpusError(f"{where}: answers is {brief(value, 40)}, expected two lists")
        value = [
            {"text": text, "answer_start": start}
            for text, start in zip(texts, starts, strict=False)
        ]
    out: list[tuple[str, int | None]] = []
    for one in value if isinstance(value, list) else [value]:
        text, start = (
            (one.get("text"), one.get("answer_start")) if isinstance(one, dict) else (one, None)
        )
        if text is None:
            continue
        if (
            not isinstance(text, str)
            or isinstance(start, bool)
            or not isinstance(start, int | None)
        ):
            raise CorpusError(
                f"{where}: an answer is {brief(one, 60)}, expected a text and where it starts"
            )
        if text.strip():
            out.append((text, start))
    return out


def _json(text: bytes, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"{where}: no JSON ({error})") from None
