"""A retrieval set as a folder of three files, with where the answer stands.

    corpus.jsonl     {"_id", "text"} a line
    queries.jsonl    {"_id", "text", "answer", "answer_start"} a line; the last two may be missing
    qrels.tsv        query-id, corpus-id, score, with or without a header; or trec_eval's four

each also as .gz or .zst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from stella_ray.errors import CorpusError, brief
from stella_ray.evaluate.questions import Answers, Asked, RawSet, Reading
from stella_ray.learn.reading import COMPRESSED, opened
from stella_ray.storage import StorageSettings, absolute, filesystem
from stella_ray.storage_faults import storage_errors
from stella_ray.streams import whole_lines

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels.tsv"


def is_folder(path: str, storage: StorageSettings = StorageSettings()) -> bool:
    """Whether this is a folder with a corpus in it."""
    return _file(path, CORPUS, storage) is not None


def read_folder(path: str, reading: Reading = Reading()) -> RawSet:
    """Read a set from its folder.

    Documents of equal texts are one. Questions that the qrels name no document for are counted and
    left out, as mteb does.

    Args:
        path: of the folder.
        reading: how.

    Raises:
        CorpusError: with the file and the line.
    """
    raw, storage = RawSet(), reading.storage
    distinct: dict[str, int] = {}
    document_of: dict[str, int] = {}
    for name, row, where in _rows(_found(path, CORPUS, storage), storage):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise CorpusError(
                f"{where}: the document is {brief(text, 40)}, expected a text, not empty"
            )
        document_of[name] = distinct.setdefault(reading.convert(text), len(distinct))
    raw.documents = list(distinct)
    raw.counts["documents of equal texts"] = len(document_of) - len(distinct)
    questions: dict[str, tuple[str | None, dict[str, Any], str]] = {}
    for name, row, where in _rows(_found(path, QUERIES, storage), storage):
        questions[name] = reading.question(row.get("text"), where, raw.counts), row, where
    judged: dict[str, dict[int, int]] = {name: {} for name in questions}
    for query, document, score, where in _qrels(_found(path, QRELS, storage), storage):
        for name, known, file in ((query, questions, QUERIES), (document, document_of, CORPUS)):
            if name not in known:
                raise CorpusError(f"{where}: {name!r} isn't in {file}; expected an _id of a line")
        own = judged[query]
        number = document_of[document]
        own[number] = max(score, own.get(number, score))
    for name, relevance in judged.items():
        asked, row, where = questions[name]
        right = [document for document, score in relevance.items() if score > 0]
        if asked is None:
            continue
        if not right:
            raw.counts["questions without a relevant document"] += 1
            continue
        answers = dict.fromkeys(right, _answers(row, where, reading))
        raw.asked.append(Asked(name, asked, relevance, answers, row, where))
    return raw


def _answers(row: dict[str, Any], where: str, reading: Reading) -> Answers:
    start, answer = row.get("answer_start"), row.get("answer")
    if isinstance(start, bool) or not isinstance(start, int | None):
        raise CorpusError(
            f"{where}: answer_start is {brief(start, 40)}, expected a number of characters"
        )
    if not isinstance(answer, str | None):
        raise CorpusError(f"{where}: answer is {brief(answer, 40)}, expected a text")
    if answer is None:
        return [] if start is None else [("", start)]
    return [(reading.convert(answer), start)]


def _file(path: str, name: str, storage: StorageSettings) -> str | None:
    uri = absolute(path).rstrip("/")
    store, _ = filesystem(uri, storage)
    with storage_errors(uri, storage, CorpusError):
        for end in ("", *COMPRESSED):
            one = f"{uri}/{name}{end}"
            if store.isfile(filesystem(one, storage)[1]):
                return one
    return None


def _found(path: str, name: str, storage: StorageSettings) -> str:
    if found := _file(path, name, storage):
        return found
    raise CorpusError(f"{path}: no {name}; expected {CORPUS}, {QUERIES} and {QRELS}, or each .gz")


def _rows(path: str, storage: StorageSettings) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each line's id, its object and where it stands."""
    seen: dict[str, int] = {}
    with opened(path, storage) as file:
        # Lines end at \n alone: texts hold U+2028 and U+0085, at which splitlines() would cut.
        for number, line in enumerate(whole_lines(path, file), 1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise CorpusError(f"{where}: no JSON ({error})") from None
            if not isinstance(row, dict) or not isinstance(row.get("_id"), str | int):
                raise CorpusError(
                    f"{where}: {brief(row, 60)}, expected an object with _id and text"
                )
            name = str(row["_id"])
            if name in seen:
                raise CorpusError(f"{where}: _id {name!r} stands twice, first in line {seen[name]}")
            seen[name] = number
            yield name, row, where
    if not seen:
        raise CorpusError(f"{path}: the file is empty; expected a line of JSON for each")


def _qrels(path: str, storage: StorageSettings) -> Iterator[tuple[str, str, int, str]]:
    """Each judgement: the query's id, the document's, its score and where it stands."""
    seen: dict[tuple[str, str], int] = {}
    with opened(path, storage) as file:
        for number, line in enumerate(whole_lines(path, file), 1):
            where = f"{path}: line {number}"
            try:
                cells = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{where}: no UTF-8 ({error.reason})") from None
            if cells == [""] or (number == 1 and not _whole(cells[-1])):  # the header
                continue
            if len(cells) not in (3, 4) or not _whole(cells[-1]):
                raise CorpusError(
                    f"{where}: {len(cells)} cells ending in {cells[-1]!r:.20}; expected query-id,"
                    " corpus-id and a whole number, with tabs between"
                )
            query, document = cells[0], cells[-2]
            if (query, document) in seen:
                raise CorpusError(
                    f"{where}: {query!r} and {document!r} stand together twice, first in line"
                    f" {seen[query, document]}"
                )
            seen[query, document] = number
            yield query, document, int(cells[-1]), where
    if not seen:
        raise CorpusError(f"{path}: no judgement; expected a line for each relevant document")


def _whole(cell: str) -> bool:
    # Eighteen digits fit 64 bits; Python refuses to read numbers of thousands.
    return bool(re.fullmatch(r"-?\d{1,18}", cell.strip()))
