"""Local files of tasks: what is wrong is told with file and line; what is right comes as mteb's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stella_ray.errors import CorpusError
from stella_ray.evaluate.local_data import (
    find_local,
    read_classes,
    read_clusters,
    read_pairs,
    read_ranking,
)
from stella_ray.evaluate.tasks import CMTEB

PAIR = '{"sentence1": "一", "sentence2": "二", "score": 1}\n'
CORPUS = '{"_id": "d1", "text": "一"}\n{"_id": "d2", "text": "二"}\n'
QUERIES = '{"_id": "q1", "text": "问"}\n'
HEAD = "query-id\tcorpus-id\tscore\n"
RETRIEVAL = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels.tsv": HEAD + "q1\td1\t1\n"}
CLASSES = {"train.jsonl": '{"text": "一", "label": 0}\n{"text": "二", "label": 1}\n'}

WRONG = [
    ("STSB", {"test.jsonl": PAIR + "{broken\n"}, "test.jsonl: line 2: no line of JSON"),
    ("STSB", {"test.jsonl": PAIR + "[1]\n"}, "test.jsonl: line 2: expected a JSON object a line"),
    ("STSB", {"test.jsonl": PAIR + '\n{"a": 1}\n'}, "line 3: no column sentence1 (or sent1, text1); it has a"),
    ("STSB", {"test.jsonl": PAIR * 2 + PAIR.replace("1}", "9}")}, "line 3: score is 9, out of range; expected 0 to 5"),
    ("AFQMC", {"validation.jsonl": PAIR.replace("1}", "2}")}, "line 1: score is 2, out of range; expected 0 to 1"),
    ("STSB", {"test.jsonl": PAIR.replace(": 1}", ": null}")}, "line 1: score is null, expected a number"),
    ("STSB", {"test.jsonl": PAIR.replace("二", " ")}, "line 1: sentence2 is empty, expected text"),
    ("STSB", {"test.jsonl": PAIR.replace('"二"', "3")}, "line 1: sentence2 is 3, expected text"),
    ("STSB", {"test.jsonl": PAIR}, "1 pairs; expected two or more"),
    ("STSB", {"test.jsonl": ""}, "test.jsonl: the file is empty"),
    ("STSB", {"test.csv": "sentence1,sentence2,score\n一,二,1\n一,二\n"}, "test.csv: line 3: 2 cells where the header has 3"),
    ("STSB", {"train.jsonl": PAIR}, "no file test for task STSB; it has train. Expected test.jsonl"),
    ("STSB", {"test.jsonl": PAIR, "test.csv": "a\n1\n"}, "are both 'test'; leave one"),
    ("Ocnli", {"validation.jsonl": PAIR * 2 + PAIR.replace("1}", "0.5}")}, "line 3: label is 0.5, out of range; expected 0 or 1"),
    ("Ocnli", {"validation.jsonl": PAIR.replace("1}", '"maybe"}')}, "line 1: score is 'maybe', expected a number"),
    ("Ocnli", {"validation.jsonl": '{"sent1": ["一"], "sent2": ["二", "三"], "labels": [1]}\n'}, "line 1: sentence1, sentence2 and labels aren't lists of one length"),
    ("TNews", {**CLASSES, "validation.jsonl": '{"text": "一", "label": 0}\n{"text": "一", "label": 7}\n'}, "validation.jsonl: line 2: label '7' is out of range; expected one of the 2"),
    ("TNews", {**CLASSES, "validation.jsonl": '{"text": "一", "label": null}\n'}, "line 1: label is null, expected a label"),
    ("TNews", {**CLASSES, "validation.jsonl": '{"text": "", "label": 1}\n'}, "line 1: text is empty"),
    ("TNews", {"validation.jsonl": '{"text": "一", "label": 1}\n'}, "no file train for task TNews"),
    ("CLSClusteringS2S", {"test.jsonl": '{"sentences": ["一", "二"], "labels": [1]}\n'}, "line 1: 2 sentences and 1 labels; expected as many"),
    ("CLSClusteringS2S", {"test.jsonl": '{"sentences": ["一", ""], "labels": [1, 2]}\n'}, "line 1: text[1] is empty"),
    ("CLSClusteringS2S", {"test.jsonl": '{"sentences": ["一"], "labels": [null]}\n'}, "line 1: labels[0] is missing"),
    ("T2Reranking", {"dev.jsonl": '{"query": "问", "positive": ["一", 5], "negative": []}\n'}, "line 1: positive[1] is 5, expected text"),
    ("T2Reranking", {"dev.jsonl": '{"query": "问", "positive": ["一"]}\n'}, "line 1: no column negative (or neg); it has query, positive"),
    ("CovidRetrieval", {**RETRIEVAL, "corpus.jsonl": CORPUS + '{"_id": "d1", "text": "三"}\n'}, "corpus.jsonl: line 3: id 'd1' stands there before, on line 1"),
    ("CovidRetrieval", {**RETRIEVAL, "queries.jsonl": QUERIES * 2}, "queries.jsonl: line 2: id 'q1' stands there before, on line 1"),
    ("CovidRetrieval", {**RETRIEVAL, "qrels.tsv": HEAD + "q1\td9\t1\n"}, "qrels.tsv: line 2: document 'd9' isn't among the 2"),
    ("CovidRetrieval", {**RETRIEVAL, "qrels.tsv": HEAD + "q1\td1\t1\nq5\td1\t1\n"}, "qrels.tsv: line 3: query 'q5' isn't among the 1"),
    ("CovidRetrieval", {**RETRIEVAL, "qrels.tsv": HEAD + "q1\td1\t-1\n"}, "qrels.tsv: line 2: score is '-1', out of range"),
    ("CovidRetrieval", {**RETRIEVAL, "qrels.tsv": HEAD + "q1\td1\t0.5\n"}, "qrels.tsv: line 2: score is 0.5, expected a whole number"),
    ("CovidRetrieval", {**RETRIEVAL, "qrels.tsv": HEAD + "q1\td1\t1\nq1\td1\t2\n"}, "line 3: document 'd1' stands there before, with score 1"),
    ("CovidRetrieval", {**RETRIEVAL, "corpus.jsonl": '{"_id": "d1", "text": "  "}\n'}, "corpus.jsonl: line 1: text is empty"),
    ("CovidRetrieval", {**RETRIEVAL, "corpus.jsonl": '{"_id": null, "text": "一"}\n'}, "corpus.jsonl: line 1: _id is null, expected an id"),
    ("CovidRetrieval", {**RETRIEVAL, "corpus.jsonl.gz": ""}, "are both 'corpus'; leave one"),
]  # fmt: skip


def read(name: str, data: Path, split: str | None = None) -> object:
    task = CMTEB[name]
    local = find_local(str(data), [task])[name]
    split = split or task.split
    if task.type == "Classification":
        return read_classes(local, [split])
    if task.type == "Clustering":
        return read_clusters(local, split)
    if task.type in ("STS", "PairClassification"):
        return read_pairs(local, split)
    return read_ranking(local, split)


def lay_down(folder: Path, task: str, files: dict[str, str]) -> Path:
    (folder / task).mkdir(parents=True)
    for name, text in files.items():
        (folder / task / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "files", "told"), WRONG, ids=[case[2][:60] for case in WRONG])
def test_what_is_wrong_is_told_in_one_line_with_its_place(
    name: str, files: dict[str, str], told: str, tmp_path: Path
) -> None:
    lay_down(tmp_path, name, files)
    with pytest.raises(CorpusError, match=re.escape(told)) as error:
        read(name, tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path))
    assert "\n" not in message


def test_pairs_come_in_any_of_the_usual_forms(tmp_path: Path) -> None:
    wanted = {"sentence1": ["一", "三"], "sentence2": ["二", "四"], "labels": [1, 0]}
    forms = {
        "a.jsonl": '{"sentence1": "一", "sentence2": "二", "label": 1}\n'
        '{"sentence1": "三", "sentence2": "四", "label": "0"}\n',
        "b.jsonl": '{"sent1": ["一", "三"], "sent2": ["二", "四"], "labels": [1, 0]}\n',
        "c.tsv": "sentence1\tsentence2\tlabel\n一\t二\tentailment\n五\t六\tneutral\n"
        "三\t四\tcontradiction\n",
        "d.csv": "sentence1,sentence2,label\n一,二,1\n三,四,0\n",
    }
    for form, text in forms.items():
        stem, _, end = form.partition(".")
        lay_down(tmp_path / stem, "OCNLI", {f"dev.{end}": text})
        assert read("Ocnli", tmp_path / stem) == wanted, form


def test_a_texts_line_separators_dont_end_its_line(tmp_path: Path) -> None:
    lay_down(tmp_path, "STSB", {"test.jsonl": PAIR.replace("一", "一\u2028二\u0085三") * 2})
    assert read("STSB", tmp_path)["sentence1"] == ["一\u2028二\u0085三"] * 2  # type: ignore[index]


def test_labels_in_words_are_numbered_alike_in_all_splits(tmp_path: Path) -> None:
    train = '{"text": "一", "label": "体育"}\n{"text": "二", "label": "财经"}\n'
    lay_down(
        tmp_path, "TNews", {"train.jsonl": train, "dev.jsonl": '{"text": "三", "label": "财经"}\n'}
    )
    found = read("TNews", tmp_path)
    assert found == {
        "train": {"text": ["一", "二"], "label": [0, 1]},
        "validation": {"text": ["三"], "label": [1]},
    }


def test_rows_of_one_text_are_one_clustering(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "{c}", "label": {i % 2}}}\n' for i, c in enumerate("一二三四"))
    lay_down(tmp_path, "CLSClusteringS2S", {"test.jsonl": rows})
    assert read("CLSClusteringS2S", tmp_path) == {
        "sentences": [["一", "二", "三", "四"]], "labels": [["0", "1", "0", "1"]],
    }  # fmt: skip


def test_candidates_of_equal_text_are_one_document_and_right_where_one_of_them_is(
    tmp_path: Path,
) -> None:
    rows = (
        '{"query": "问", "positive": ["一"], "negative": ["二", "一", "二"]}\n'
        '{"query": "问", "positive": ["二"], "negative": ["三"]}\n'
    )
    lay_down(tmp_path, "T2Reranking", {"dev.jsonl": rows})
    found = read("T2Reranking", tmp_path)
    assert found.corpus["text"] == ["一", "二", "三"]  # type: ignore[attr-defined]
    assert found.relevant == {"q0": {"d1": 0, "d0": 1}, "q1": {"d2": 0, "d1": 1}}  # type: ignore[attr-defined]
    assert found.candidates == {"q0": ["d0", "d1"], "q1": ["d1", "d2"]}  # type: ignore[attr-defined]


def test_the_revision_is_that_of_the_files_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lay_down(tmp_path / name, "STSB", {"test.jsonl": PAIR * 2})
    task = CMTEB["STSB"]
    one, other = (find_local(str(tmp_path / name), [task])["STSB"].revision for name in "ab")
    assert one == other
    (tmp_path / "b/STSB/test.jsonl").write_text(PAIR * 3, encoding="utf-8")
    assert find_local(str(tmp_path / "b"), [task])["STSB"].revision != one
