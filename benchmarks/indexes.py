"""Which full-text tokenizer and which vector index are worth their time and space?

`text`: BM25 recall of Lance's tokenizers that need no dictionary, on folders of corpus.jsonl.gz
(_id, text), queries.jsonl.gz (_id, text) and qrels.tsv.gz, each alone and all as one corpus.
`vectors`: kinds of index on clustered vectors of length 1, each asked as searches ask it.

    python -m benchmarks.indexes text FOLDER [FOLDER …] [--every 4]
    python -m benchmarks.indexes vectors [--rows 100000] [--dim 256] [--only ivf_pq]
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.query import MatchQuery

from stella_ray.table import vector_index
from stella_ray.table.index import FULL_TEXT

TOKENIZERS: dict[str, dict[str, Any]] = {
    "simple (Lance's default)": {"base_tokenizer": "simple"},
    "icu": {"base_tokenizer": "icu"},
    **{
        f"ngram {least}..{most}": {
            "base_tokenizer": "ngram",
            "min_ngram_length": least,
            "max_ngram_length": most,
        }
        for least, most in ((1, 1), (1, 2), (2, 2), (1, 3))
    },
}

Task = tuple[dict[str, str], dict[str, str], dict[str, set[str]]]
"""Documents and queries by id; the relevant documents of each query."""


def read_task(folder: Path, every: int) -> Task:
    """Read a folder; ids get its name in front, so that several can be one corpus."""

    def lines(name: str) -> Iterator[str]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            for line in file:  # not splitlines(): texts hold U+2028
                yield line.rstrip("\n")

    def texts(name: str) -> dict[str, str]:
        rows = map(json.loads, lines(name))
        return {f"{folder.name}/{row['_id']}": row["text"] for row in rows}

    queries = dict(list(texts("queries.jsonl.gz").items())[::every])
    relevant: dict[str, set[str]] = {}
    for line in list(lines("qrels.tsv.gz"))[1:]:
        query, document = line.split("\t")[:2]
        relevant.setdefault(f"{folder.name}/{query}", set()).add(f"{folder.name}/{document}")
    return texts("corpus.jsonl.gz"), queries, relevant


def bytes_of(folder: str) -> int:
    """What the files of a folder hold together."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def time_tokenizers(name: str, task: Task) -> None:
    """Print a line of a table for each tokenizer."""
    documents, queries, relevant = task
    size = sum(len(text.encode()) for text in documents.values())
    print(
        f"\n{name}: {len(documents):,} documents, {size / 2**20:.2f} MiB, {len(queries):,} queries"
    )
    print("| tokenizer | build s | MiB | ms a query | R@1 | R@5 | R@10 |")
    print("|---|---|---|---|---|---|---|")
    rows = pa.table({"id": list(documents), "text": list(documents.values())})
    for tokenizer, options in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            dataset = lance.write_dataset(rows, f"{scratch}/t.lance")
            start = time.perf_counter()
            plain = {"stem": False, "remove_stop_words": False, "with_position": False}
            dataset.create_scalar_index("text", "INVERTED", **plain, **options)
            built, start = time.perf_counter() - start, time.perf_counter()
            places = []
            for query, text in queries.items():
                how = {"full_text_query": MatchQuery(text, "text"), "limit": 10}
                found = dataset.scanner(columns=["id", "_score"], **how).to_table()["id"]
                hits = [doc in relevant[query] for doc in found.to_pylist()]
                places.append(hits.index(True) if True in hits else 10)
            spent = (time.perf_counter() - start) / len(queries) * 1_000
            shares = " | ".join(f"{100 * np.mean(np.array(places) < k):.2f}" for k in (1, 5, 10))
            space = bytes_of(f"{scratch}/t.lance/_indices") / 2**20
            print(
                f"| {tokenizer} | {built:.2f} | {space:.2f} | {spent:.1f} | {shares} |", flush=True
            )


def clustered(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in rows / 50 clusters of unequal size, float32 [rows, dim]."""
    dice = np.random.default_rng(seed)
    centers = dice.standard_normal((max(1, rows // 50), dim), np.float32)
    own = np.minimum(dice.exponential(len(centers) / 3, rows), len(centers) - 1).astype(int)
    vectors = centers[own] + 0.7 * dice.standard_normal((rows, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def time_vector_indexes(rows: int, dim: int, only: Sequence[str], queries: int = 200) -> None:
    """Print a line of a table for each kind."""
    vectors = clustered(rows, dim)
    dice = np.random.default_rng(1)
    asked = vectors[dice.integers(0, rows, queries)]
    asked = asked + 0.3 * dice.standard_normal(asked.shape, np.float32) / np.sqrt(dim)
    truth = np.argpartition(-(asked @ vectors.T), 10, axis=1)[:, :10]
    hnsw, pq = (vector_index.shape(kind, rows, dim) for kind in ("ivf_hnsw_sq", "ivf_pq"))
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("", {}),
        "ivf_hnsw_sq": ("IVF_HNSW_SQ", hnsw),
        "ivf_hnsw_sq, one graph": ("IVF_HNSW_SQ", {**hnsw, "num_partitions": 1}),
        "ivf_pq": ("IVF_PQ", pq),
        "ivf_pq, 4 numbers a part": ("IVF_PQ", {**pq, "num_sub_vectors": dim // 4}),
    }
    print(f"\n{rows:,} x {dim} float32, {queries} queries, one at a time")
    print(
        "| index | partitions | build s | MiB | recall@10 | ms a query | recall@10, no refining |"
    )
    print("|---|---|---|---|---|---|---|")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, (kind, options)) in enumerate(kinds.items()):
            if only and name not in only:
                continue
            uri = f"{scratch}/{number}.lance"
            dataset = lance.write_dataset(pa.table({"vector": column}), uri)
            start = time.perf_counter()
            if kind:
                dataset = dataset.create_index("vector", kind, metric="cosine", **options)
            built = time.perf_counter() - start
            plain, _ = recall(dataset, asked, truth, refine_factor=None)
            share, spent = recall(dataset, asked, truth)
            space = bytes_of(f"{uri}/_indices") / 2**20 if kind else 0.0
            parts = options.get("num_partitions", "")
            print(
                f"| {name} | {parts} | {built:.1f} | {space:.1f} | {share:.4f} | {spent:.1f} |"
                f" {plain:.4f} |",
                flush=True,
            )


def recall(
    dataset: lance.LanceDataset, asked: np.ndarray, truth: np.ndarray, **other: Any
) -> tuple[float, float]:
    """Recall and milliseconds a query of searches as search.py makes them."""
    found = 0
    start = time.perf_counter()
    for query, own in zip(asked, truth, strict=True):
        how = {**vector_index.nearest(query, truth.shape[1], dataset.count_rows()), **other}
        rows = dataset.scanner(columns=["_distance"], nearest=how, with_row_id=True).to_table()
        found += len(np.intersect1d(rows["_rowid"].to_numpy(), own))
    spent = time.perf_counter() - start
    return found / truth.size, spent / len(asked) * 1_000


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    text = kinds.add_parser("text")
    text.add_argument("folders", type=Path, nargs="+")
    text.add_argument("--every", type=int, default=1, help="take every n-th query")
    vectors = kinds.add_parser("vectors")
    vectors.add_argument("--rows", type=int, default=100_000)
    vectors.add_argument("--dim", type=int, default=256)
    vectors.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    if options.what == "vectors":
        time_vector_indexes(options.rows, options.dim, options.only)
        return
    print(f"in use: {FULL_TEXT}")
    tasks = {folder.name: read_task(folder, options.every) for folder in options.folders}
    if len(tasks) > 1:
        documents, queries, relevant = zip(*tasks.values(), strict=True)
        tasks["all as one"] = tuple(  # type: ignore[assignment]
            {key: value for part in parts for key, value in part.items()}
            for parts in (documents, queries, relevant)
        )
    for name, task in tasks.items():
        time_tokenizers(name, task)


if __name__ == "__main__":
    main()
