"""The readers of training and evaluation files that benchmarks.fuzz feeds; see `fuzz_shards`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.fuzz_shards import Tally, csv_line, watched
from benchmarks.mutations import ANY, LINE, mutated, packed, parquet_file
from stella_ray.evaluate.local_rows import read_rows
from stella_ray.evaluate.retrieval_folder import read_folder
from stella_ray.evaluate.squad import read_squad
from stella_ray.learn.evaluation_texts import evaluation_texts
from stella_ray.learn.reading import read_examples
from stella_ray.learn.sources import ExampleSource


def training(dice: random.Random, path: Path, count: int) -> Tally:
    """Examples are texts and finite labels, and one bad row stops the file."""
    tally = Tally()
    sources = [
        ExampleSource(name="pairs", kind="pairs", files=["x"], negatives_column="negatives"),
        ExampleSource(name="scored", kind="scored", files=["x"], highest_score=5),
        ExampleSource(name="nli", kind="nli", files=["x"]),
    ]
    for _ in range(count):
        source = dice.choice(sources)
        label: Any = dice.choice(source.label_order) if source.kind == "nli" else 2.5
        more: dict[str, Any] = (
            {"negatives": ["三", "四"]} if source.kind == "pairs" else {"label": label}
        )
        rows = [{"query": f"问{i}", "passage": '答, "a"', **more} for i in range(3)]
        ending = dice.choice([".jsonl", ".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.zst"])
        file = path.with_name(f"training{ending}")
        file.write_bytes(_file_of(dice, rows, ending))
        with watched(tally, file, 1):
            for one in read_examples(str(file), source):
                for text in (one.query, one.passage, *one.negatives):
                    assert text.strip()
                    text.encode()
                assert source.kind == "pairs" or -1e308 <= one.label <= 1e308
                tally.rows += 1
    return tally


def evaluation(dice: random.Random, path: Path, count: int) -> Tally:
    """Rows of evaluation files, each of their cells asked for."""
    tally = Tally()
    for _ in range(count):
        rows = [
            {"_id": f"{i}", "text": '文, "a"', "negatives": ["三", "四"], "score": 2}
            for i in range(3)
        ]
        ending = dice.choice([".jsonl", ".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
        file = path.with_name(f"evaluation{ending}")
        file.write_bytes(_file_of(dice, rows, ending))
        with watched(tally, file, 1):
            for row in read_rows(str(file)):
                assert row.name(["id", "_id"])
                assert row.text(["text"]).strip()
                for text in row.texts(["negatives"]):
                    text.encode()
                assert 0 <= row.number(["score"], 0, 5) <= 5
                tally.rows += 1
    return tally


def squad(dice: random.Random, path: Path, count: int) -> Tally:
    """Reading comprehension, as a tree or a line a paragraph."""
    tally = Tally()
    for _ in range(count):
        qas = [
            {"id": f"q{i}", "question": f"问{i}？", "answers": [{"text": "文", "answer_start": i}]}
            for i in range(2)
        ]
        one: dict[str, Any] = {"context": "文文文章。", "qas": qas}
        ending = dice.choice([".json", ".jsonl", ".json.gz"])
        tree = {"data": [{"paragraphs": [one]}]} if ending != ".jsonl" else one
        file = path.with_name(f"squad{ending}")
        data = mutated(dice, json.dumps(tree, ensure_ascii=False).encode(), LINE)
        file.write_bytes(packed(data, ".gz" if ending.endswith(".gz") else ""))
        with watched(tally, file, 1):
            found = read_squad(str(file))
            assert all(one.text.strip() and one.relevance for one in found.asked)
            json.dumps(
                [found.documents, [one.name for one in found.asked]], ensure_ascii=False
            ).encode()
            tally.rows += len(found.asked)
    return tally


def retrieval(dice: random.Random, path: Path, count: int) -> Tally:
    """A folder of documents, questions and judgements."""
    tally = Tally()
    for _ in range(count):
        documents = [
            json.dumps({"_id": f"d{i}", "text": f"文{i}"}, ensure_ascii=False) for i in range(3)
        ]
        asked = [
            json.dumps({"_id": f"q{i}", "text": f"问{i}", "answer": "文", "answer_start": 0})
            for i in range(2)
        ]
        judged = ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q1\td2\t1"]
        files = {"corpus.jsonl": documents, "queries.jsonl": asked, "qrels.tsv": judged}
        bad = dice.choice(list(files))
        for name, texts in files.items():
            data = "\n".join(texts).encode()
            path.with_name(name).write_bytes(mutated(dice, data, LINE) if name == bad else data)
        with watched(tally, path.with_name(bad), 1):
            tally.rows += len(read_folder(str(path.parent)).asked)
    return tally


def overlap(dice: random.Random, path: Path, count: int) -> Tally:
    """The texts of evaluation sets that training data are compared with."""
    tally = Tally()
    for _ in range(count):
        ending = dice.choice([".json", ".jsonl", ".csv", ".parquet"])
        rows = [
            {"id": f"{i}", "question": '文, "a"', "context": ["三", "四"], "at": 2}
            for i in range(3)
        ]
        file = path.with_name(f"overlap{ending}")
        data = (
            mutated(dice, json.dumps(rows).encode(), LINE)
            if ending == ".json"
            else _file_of(dice, rows, ending)
        )
        file.write_bytes(data)
        with watched(tally, file, 1):
            for one in evaluation_texts(str(file)):
                assert one.text.strip()
                tally.rows += 1
    return tally


def _file_of(dice: random.Random, rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == ".parquet":
        if dice.random() < 0.3:
            rows[1][dice.choice(list(rows[1]))] = None
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        if dice.random() < 0.2:
            columns[dice.choice(list(columns))] = pa.array(
                [2**62, 0, None], pa.timestamp(dice.choice(["ms", "us", "ns"]))
            )
        return mutated(dice, parquet_file(dice, columns), ANY)
    if ".csv" in ending or ".tsv" in ending:
        lines = [",".join(rows[0]).encode(), *map(csv_line, rows)]
        if ".tsv" in ending:
            lines = [line.replace(b",", b"\t") for line in lines]
    else:
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    at = dice.randrange(len(lines))
    lines[at] = mutated(dice, lines[at], LINE)
    data = packed(b"\n".join(lines), ending[ending.rfind(".") :])
    return mutated(dice, data, ANY) if dice.random() < 0.1 else data
