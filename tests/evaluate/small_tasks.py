"""Small local tasks of each of C-MTEB's six types, as a person would lay them down."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import HAN

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")


class Writer:
    """Texts of topics, each with characters of its own, so that scores are neither 0 nor 1."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = random.Random(seed)

    def text(self, topic: int, length: int | None = None) -> str:
        own, common = HAN[topic * 40 : topic * 40 + 40], HAN[1_000:1_400]
        length = length or self.draw.randint(4, 60)
        return "".join(self.draw.choice(own if self.draw.random() < 0.3 else common)
                       for _ in range(length))  # fmt: skip

    def changed(self, text: str, share: float) -> str:
        return "".join(self.draw.choice(HAN) if self.draw.random() < share else c for c in text)


def write_tasks(folder: Path) -> Path:
    """Six tasks in six formats."""
    made = Writer()
    rows = []
    for i in range(60):
        first = made.text(i % 7)
        score = i % 6
        rows.append({"sentence1": first, "sentence2": made.changed(first, 1 - score / 5),
                     "label": str(score)})  # fmt: skip
    rows += rows[:5]  # equal texts are embedded once
    jsonl(folder / "STSB/test.jsonl.gz", rows)
    pairs: Rows = [
        {"sent1": row["sentence1"], "sent2": row["sentence2"], "labels": int(row["label"]) // 3}
        for row in rows
    ]
    (folder / "ocnli").mkdir()
    with (folder / "ocnli/validation.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(pairs[0]))
        writer.writeheader()
        writer.writerows(pairs)
    for split, count in (("train", 150), ("validation", 50)):
        classes = [{"text": made.text(i % 3), "label": f"类{i % 3}"} for i in range(count)]
        (folder / "TNews").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(classes), folder / f"TNews/{split}.parquet")
    sets = []
    for _ in range(3):
        labels = [made.draw.randint(0, 3) for _ in range(30)]
        sets.append({"sentences": [made.text(n) for n in labels], "labels": labels})
    jsonl(folder / "CLSClusteringS2S/test.jsonl", sets)
    ranked = []
    for i in range(12):
        query = made.text(i, 12)
        ranked.append({"query": query, "positive": [made.changed(query, 0.7) for _ in range(2)],
                       "negative": [made.text(n) for n in range(6)]})  # fmt: skip
    jsonl(folder / "T2Reranking/dev.jsonl", ranked)
    documents = [made.text(i % 20, 30 + i) for i in range(80)]
    retrieval = folder / "CmedqaRetrieval"
    corpus = [{"_id": i, "text": text, "title": made.text(i % 20, 5) if i % 2 else ""}
              for i, text in enumerate(documents)]  # fmt: skip
    jsonl(retrieval / "corpus.jsonl", corpus)
    queries = [{"_id": f"问{i}", "text": made.changed(documents[i][5:25], 0.4)} for i in range(20)]
    jsonl(retrieval / "queries.jsonl", queries)
    qrels = [f"问{i}\t{n}\t{1 + (n > 40)}" for i in range(20) for n in (i, i + 20, i + 40)]
    (retrieval / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    return folder


def write_long(path: Path) -> Path:
    """Eight documents of 700 characters in SQuAD's form, each asked about its start and end."""
    made, paragraphs = Writer(1), []
    for i in range(8):
        text = made.text(i, 700)
        qas = [
            {"id": f"{i}-{start}", "question": made.changed(text[start : start + 20], 0.3),
             "answers": [{"text": text[start : start + 9], "answer_start": start}]}
            for start in (10, 650)
        ]  # fmt: skip
        paragraphs.append({"context": text, "qas": qas})
    tree = {"data": [{"paragraphs": paragraphs}]}
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    return path
