"""C-MTEB tasks from local files, checked: what they hold is told in docs/evaluation.md.

A wrong row stops the task with its file and line: a test set that was mended silently would be
another test set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stella_ray.errors import CorpusError
from stella_ray.evaluate.local_rows import Row, digest, folders, read_rows, stems
from stella_ray.evaluate.tasks import Task
from stella_ray.storage import StorageSettings

FIRST, SECOND = ("sentence1", "sent1", "text1"), ("sentence2", "sent2", "text2")
SCORE = ("score", "label", "labels")
TEXT, LABEL = ("text", "sentence", "sentences"), ("label", "labels")
DOCUMENT_ID, QUERY_ID = ("_id", "id", "corpus-id", "cid", "pid"), ("_id", "id", "query-id", "qid")
QREL_QUERY = ("query-id", "query_id", "qid")
QREL_DOCUMENT = ("corpus-id", "corpus_id", "docid", "doc_id", "cid", "pid")

SAME_SPLIT = ("validation", "valid", "dev")
"""Names of one and the same split."""

NLI = {"entailment": "1", "contradiction": "0"}
"""Words for the labels of pairs; neutral pairs aren't among C-MTEB's."""


@dataclass(frozen=True)
class LocalTask:
    """Where a task's files are.

    Attributes:
        task: which one.
        folder: as it is spelled.
        files: by their names without endings, in small letters.
    """

    task: Task
    folder: str
    files: dict[str, str]
    storage: StorageSettings = StorageSettings()

    @property
    def revision(self) -> str:
        """A digest of all the task's files."""
        return digest(list(self.files.values()), self.storage)

    def path(self, *names: str) -> str:
        """The file of one of these names.

        Raises:
            CorpusError: there is none.
        """
        for name in names:
            if name in self.files:
                return self.files[name]
        raise CorpusError(
            f"{self.folder}: no file {names[0]} for task {self.task.name}; it has"
            f" {', '.join(sorted(self.files)) or 'none that is read here'}. Expected"
            f" {names[0]}.jsonl (or .csv, .tsv, .parquet), see docs/evaluation.md"
        )

    def has(self, split: str) -> bool:
        """Whether there is a file of this split."""
        return any(name in self.files for name in _names(split))

    def rows(self, *names: str) -> Iterator[Row]:
        """The rows of the file of one of these names."""
        return read_rows(self.path(*names), self.storage)

    def split(self, split: str) -> Iterator[Row]:
        """The rows of a split."""
        return self.rows(*_names(split))


def _names(split: str) -> tuple[str, ...]:
    return (split, *SAME_SPLIT) if split in SAME_SPLIT else (split,)


def find_local(
    data: str, tasks: Sequence[Task], storage: StorageSettings = StorageSettings()
) -> dict[str, LocalTask]:
    """Those of the tasks that have a folder, by name.

    Raises:
        CorpusError: no such folder of folders.
    """
    there, out = folders(data, storage), {}
    for task in tasks:
        name = task.name.lower()
        if folder := there.get(name) or there.get(name.removesuffix("-reranking")):
            out[task.name] = LocalTask(task, folder, stems(folder, storage), storage)
    return out


Columns = dict[str, list[Any]]


def read_pairs(local: LocalTask, split: str) -> Columns:
    """STS: sentence1, sentence2, score; pair classification: labels, 0 or 1, instead."""
    sts = local.task.type == "STS"
    low, high = local.task.scores if sts else (0, 1)
    out: Columns = {"sentence1": [], "sentence2": [], "score" if sts else "labels": []}
    for row in _one_by_one(local.split(split)):
        value = row.cell(SCORE)
        if not sts and value == "neutral":
            continue
        if isinstance(value, str) and value in NLI and not sts:
            row = Row(row.path, row.where, {**row.cells, **{n: NLI[value] for n in SCORE}})
        score = row.number(SCORE, low, high)
        if not sts and score not in (0, 1):
            row.refuse(f"label is {value!r}, out of range; expected 0 or 1")
        out["sentence1"].append(row.text(FIRST))
        out["sentence2"].append(row.text(SECOND))
        out["score" if sts else "labels"].append(score if sts else int(score))
    return _filled(out, local, split)


def _one_by_one(rows: Iterator[Row]) -> Iterator[Row]:
    """Take rows apart, since mteb 1's own form of pair classification is one row of lists."""
    for row in rows:
        if not isinstance(row.cell(FIRST), list):
            yield row
            continue
        lists = [row.cell(names) for names in (FIRST, SECOND, SCORE)]
        if not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
            row.refuse("sentence1, sentence2 and labels aren't lists of one length")
        for i, cells in enumerate(zip(*lists, strict=True)):
            named = dict(zip(("sentence1", "sentence2", "labels"), cells, strict=True))
            yield Row(row.path, f"{row.where} item {i}", named)


def read_classes(local: LocalTask, splits: Sequence[str]) -> dict[str, Columns]:
    """Classification by split, train included: text, label; labels are whole numbers from 0.

    Words are numbered in their order.
    """
    found: dict[str, list[tuple[Row, str]]] = {}
    for split in ("train", *splits):
        rows = local.split(split)
        found[split] = [(row, _class(row)) for row in rows]
    known = {label for _, label in found["train"]}
    for split in splits:
        for row, label in found[split]:
            if label not in known:
                row.refuse(
                    f"label {label!r} is out of range; expected one of the {len(known)} that"
                    f" {local.path('train')} has"
                )
    if len(known) < 2:
        raise CorpusError(f"{local.path('train')}: {len(known)} label; expected two or more")
    number = _numbered(known)
    return {
        split: {
            "text": [row.text(TEXT) for row, _ in rows],
            "label": [number[label] for _, label in rows],
        }
        for split, rows in found.items()
    }


def _class(row: Row) -> str:
    value = row.cell(LABEL)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        row.refuse(f"label is {'null' if value is None else repr(value)}, expected a label")
    return str(value)


def _numbered(labels: set[str]) -> dict[str, int]:
    """Whole numbers as they are, if all are; else numbers in the words' order."""
    try:
        return {label: int(label) for label in labels}
    except ValueError:
        return {label: i for i, label in enumerate(sorted(labels))}


def read_clusters(local: LocalTask, split: str) -> Columns:
    """Clustering: sentences and labels, a list of each a set; rows of one text are one set."""
    out: Columns = {"sentences": [], "labels": []}
    flat: Columns = {"sentences": [], "labels": []}
    for row in local.split(split):
        if not isinstance(row.cell(TEXT), list):
            flat["sentences"].append(row.text(TEXT))
            flat["labels"].append(_class(row))
            continue
        texts, labels = row.texts(TEXT), row.cell(LABEL)
        if not isinstance(labels, list) or len(labels) != len(texts):
            count = len(labels) if isinstance(labels, list) else "no list of"
            row.refuse(f"{len(texts)} sentences and {count} labels; expected as many")
        if missing := [i for i, label in enumerate(labels) if label in (None, "")]:
            row.refuse(f"labels[{missing[0]}] is missing, expected a label")
        out["sentences"].append(texts)
        out["labels"].append([str(label) for label in labels])
    if flat["sentences"]:
        out["sentences"].append(flat["sentences"])
        out["labels"].append(flat["labels"])
    return out


@dataclass
class Ranking:
    """Retrieval or reranking: texts by id, and which documents answer which query.

    Attributes:
        corpus: id, text, title.
        queries: id, text.
        relevant: grades by document by query.
        candidates: of reranking: each query's documents.
    """

    corpus: Columns = field(default_factory=lambda: {"id": [], "text": [], "title": []})
    queries: Columns = field(default_factory=lambda: {"id": [], "text": []})
    relevant: dict[str, dict[str, int]] = field(default_factory=dict)
    candidates: dict[str, list[str]] | None = None


def read_ranking(local: LocalTask, split: str) -> Ranking:
    """Read corpus, queries and qrels; of reranking also rows of query, positive, negative."""
    if local.task.type == "Reranking" and local.has(split):
        return _reranking(local, split)
    out = Ranking()
    documents: dict[str, str] = {}
    for row in local.rows("corpus"):
        out.corpus["id"].append(_new(row, row.name(DOCUMENT_ID), documents))
        title = row.cells.get("title") or ""
        if not isinstance(title, str):
            row.refuse("title isn't text")
        text = row.cell(("text", "passage", "contents"))
        out.corpus["text"].append(text if title and text == "" else row.checked_text(text, "text"))
        out.corpus["title"].append(title)
    queries: dict[str, str] = {}
    for row in local.rows("queries", f"queries-{split}"):
        out.queries["id"].append(_new(row, row.name(QUERY_ID), queries))
        out.queries["text"].append(row.text(("text", "query")))
    for row in local.rows("qrels", f"qrels-{split}", *_names(split)):
        query, document = row.name(QREL_QUERY), row.name(QREL_DOCUMENT)
        for name, kind, known in ((query, "query", queries), (document, "document", documents)):
            if name not in known:
                row.refuse(f"{kind} {name!r} isn't among the {len(known):,} of {local.folder}")
        _grade(row, document, out.relevant.setdefault(query, {}))
    if local.task.type == "Reranking":
        out.candidates = {query: list(grades) for query, grades in out.relevant.items()}
    return out


def _grade(row: Row, document: str, grades: dict[str, int]) -> None:
    """Put a document's grade down with its query's."""
    grade = row.number(("score", "relevance"), 0, 1_000)
    if not grade.is_integer():
        row.refuse(f"score is {grade:g}, expected a whole number")
    if grades.setdefault(document, int(grade)) != int(grade):
        row.refuse(f"document {document!r} stands there before, with score {grades[document]}")


def _new(row: Row, name: str, places: dict[str, str]) -> str:
    if name in places:
        row.refuse(f"id {name!r} stands there before, on {places[name]}; expected each once")
    places[name] = row.where
    return name


def _reranking(local: LocalTask, split: str) -> Ranking:
    """Candidates of equal text are one document; a query's own are positive before negative."""
    out = Ranking(candidates={})
    number: dict[str, str] = {}
    assert out.candidates is not None
    for count, row in enumerate(local.split(split)):
        query = f"q{count}"
        out.queries["id"].append(query)
        out.queries["text"].append(row.text(("query",)))
        positive, negative = row.texts(("positive", "pos")), row.texts(("negative", "neg"))
        for text in (*positive, *negative):
            number.setdefault(text, f"d{len(number)}")
        out.relevant[query] = {number[text]: 0 for text in negative}
        out.relevant[query] |= {number[text]: 1 for text in positive}
        out.candidates[query] = list(dict.fromkeys(number[t] for t in (*positive, *negative)))
    out.corpus = {"id": list(number.values()), "text": list(number), "title": [""] * len(number)}
    return out


def _filled(columns: Columns, local: LocalTask, split: str) -> Columns:
    if len(columns["sentence1"]) < 2:
        raise CorpusError(
            f"{local.path(*_names(split))}: {len(columns['sentence1'])} pairs; expected two or more"
        )
    return columns
