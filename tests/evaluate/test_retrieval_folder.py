"""A set as a folder: what is read, and what is said of files that aren't right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from stella_ray.errors import CorpusError
from stella_ray.evaluate.questions import Reading
from stella_ray.evaluate.retrieval_folder import is_folder, read_folder

CORPUS = [
    {"_id": "d0", "text": "甲\u2028乙"},
    {"_id": "d1", "text": "丙丁"},
    {"_id": 2, "text": "丙丁"},
]
QUERIES = [
    {"_id": "q0", "text": "乙？", "answer": "乙", "answer_start": 2},
    {"_id": "q1", "text": "丁？", "answer_start": 1},
    {"_id": 7, "text": "丙？"},
    {"_id": "q3", "text": "没有？"},
]
QRELS = "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td1\t0\nq1\td1\t1\nq1\t2\t3\n7\t2\t1\n"


def written(
    folder: Path, corpus: list[dict] = CORPUS, queries: list[dict] = QUERIES, qrels: str = QRELS
) -> str:
    folder.mkdir(exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "qrels.tsv").write_text(qrels, encoding="utf-8")
    return str(folder)


def test_a_folder_is_read_with_equal_documents_as_one(tmp_path: Path) -> None:
    path = written(tmp_path / "set")
    raw = read_folder(path)
    assert is_folder(path)
    assert not is_folder(str(tmp_path))
    assert raw.documents == ["甲\u2028乙", "丙丁"]
    assert [(one.name, one.relevance, one.answers) for one in raw.asked] == [
        ("q0", {0: 2, 1: 0}, {0: [("乙", 2)]}),
        ("q1", {1: 3}, {1: [("", 1)]}),
        ("7", {1: 1}, {1: []}),
    ]
    assert raw.counts["documents of equal texts"] == 1
    assert raw.counts["questions without a relevant document"] == 1


def test_compressed_files_and_trec_evals_columns_are_read_too(tmp_path: Path) -> None:
    plain = read_folder(written(tmp_path / "set"))
    columns = [line.split("\t") for line in QRELS.rstrip().split("\n")[1:]]
    trec = "".join(f"{q}\t0\t{d}\t{score}\n" for q, d, score in columns)
    path = written(tmp_path / "set", qrels=trec)
    for file in list((tmp_path / "set").iterdir()):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    again = read_folder(path)
    assert [one.relevance for one in again.asked] == [one.relevance for one in plain.asked]


def test_questions_without_a_text_are_refused_left_out_or_asked_as_one_says(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "set", queries=[*QUERIES[1:], {"_id": "q0", "text": ""}])
    with pytest.raises(CorpusError, match="line 4: the question is '', expected"):
        read_folder(path)
    for how, names in {"leave_out": {"q1", "7"}, "ask": {"q0", "q1", "7"}}.items():
        raw = read_folder(path, Reading(empty_questions=how))  # type: ignore[arg-type]
        assert {one.name for one in raw.asked} == names
        assert raw.counts["questions without a text"] == 1


BAD = {
    "corpus.jsonl: line 2: _id 'd0' stands twice, first in line 1": {
        "corpus": [CORPUS[0], CORPUS[0]]
    },
    "corpus.jsonl: line 1: the document is '  ', expected a text": {
        "corpus": [{"_id": "d", "text": "  "}]
    },
    "corpus.jsonl: line 1: {'id': 'd', 'text': '甲'}, expected an object with _id": {
        "corpus": [{"id": "d", "text": "甲"}]
    },
    "corpus.jsonl: the file is empty": {"corpus": []},
    "queries.jsonl: line 1: the question is null": {"queries": [{"_id": "q0"}]},
    "queries.jsonl: line 1: answer_start is '5', expected a number": {
        "queries": [{"_id": "q0", "text": "乙？", "answer_start": "5"}]
    },
    "qrels.tsv: line 2: 'd9' isn't in corpus.jsonl": {"qrels": "q\td\ts\nq0\td9\t1\n"},
    "qrels.tsv: line 1: 'q9' isn't in queries.jsonl": {"qrels": "q9\td0\t1\n"},
    "qrels.tsv: line 2: 'q0' and 'd0' stand together twice, first in line 1": {
        "qrels": "q0\td0\t1\nq0\td0\t1\n"
    },
    "qrels.tsv: line 2: 3 cells ending in 'high'": {"qrels": "q0\td0\t1\nq0\td1\thigh\n"},
    "qrels.tsv: line 2: 1 cells ending in 'q0 d1 1'": {"qrels": "q0\td0\t1\nq0 d1 1\n"},
    "qrels.tsv: no judgement": {"qrels": "query-id\tcorpus-id\tscore\n"},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_is_named_by_file_and_line(message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "set", **BAD[message])  # type: ignore[arg-type]
    queries = BAD[message].get("queries")
    if queries:
        written(tmp_path / "set", queries=queries, qrels="q0\td0\t1\n")  # type: ignore[arg-type]
    with pytest.raises(CorpusError) as error:
        read_folder(path)
    assert f"{path}/{message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_json_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "set")
    (tmp_path / "set/queries.jsonl").write_text('{"_id": "q0", "text": "乙？"}\n{"_id"\n')
    with pytest.raises(CorpusError, match=r"queries\.jsonl: line 2: no JSON"):
        read_folder(path)
    (tmp_path / "set/queries.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"no queries\.jsonl; expected corpus\.jsonl, que"):
        read_folder(path)
