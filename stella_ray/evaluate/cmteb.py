"""C-MTEB by mteb's own protocol: its tasks score; the data may be local, the vectors are ours."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import mteb
import numpy as np
from sklearn.metrics.pairwise import paired_cosine_distances

from stella_ray.errors import CorpusError
from stella_ray.evaluate.baselines import bm25, fuse
from stella_ray.evaluate.local_data import (
    LocalTask,
    Ranking,
    read_classes,
    read_clusters,
    read_pairs,
    read_ranking,
)
from stella_ray.evaluate.metrics import ranking_metrics
from stella_ray.evaluate.mteb_encoder import ActorEncoder, Embed
from stella_ray.evaluate.results import TaskResult, Units
from stella_ray.evaluate.tasks import MTEB_MAIN, Task

log = logging.getLogger("stella_ray.evaluate")

TEXTS_PER_BATCH = 1_024
"""Of mteb's loaders, which only hand texts on: the encoder cuts batches of its own."""

DEPTH = 100
"""Of BM25's and of the vectors' ranking, which the hybrid fuses."""

DEPTHS = (1, 3, 5, 10, 100)

PER_QUERY = {
    "ndcg_at_10": "ndcg_cut_10",
    "recall_at_10": "recall_10",
    "map_at_1000": "map_cut_1000",
}
"""Metrics of which each query's value is kept, and pytrec_eval's names for them."""


def open_task(task: Task, local: LocalTask | None) -> Any:
    """Open mteb's task with its data, from local files or from the hub.

    Raises:
        CorpusError: the files are wrong, or the hub can't be reached.
    """
    splits = list(dict.fromkeys((task.split, *task.mteb_splits)))
    if local is not None:
        splits = [split for split in splits if split == task.split or local.has(split)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that newer versions of tasks exist is no news here
        opened: Any = mteb.get_task(task.name, eval_splits=splits, hf_subsets=[task.subset])
        if local is not None:
            data = _local_data(local, splits)
            opened.dataset = data if task.subset == "default" else {task.subset: data}
            opened.data_loaded = True
        else:
            _from_hub(opened, task)
    return opened


def hub_revision(task: Task) -> str:
    """The commit of the data on the hub that mteb names."""
    return str(mteb.get_task(task.name).metadata.dataset["revision"])


def _from_hub(opened: Any, task: Task) -> None:
    try:
        opened.load_data()
    except Exception as error:
        # Whatever the libraries below raise (httpx, datasets, OSError), for a person it is this.
        where = opened.metadata.dataset["path"]
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise HubError(
            f"task {task.name}: its data can't be had from the hub ({where}: {reason}); put the"
            f" files into DIR/{task.name} and give --data DIR (docs/evaluation.md tells the forms)"
        ) from error


class HubError(CorpusError):
    """A task's data can't be had from the hub."""


def _local_data(local: LocalTask, splits: Sequence[str]) -> Any:
    """The data as mteb's task holds it."""
    kind = local.task.type
    if kind in ("Retrieval", "Reranking"):
        return {"default": {split: _ranking(read_ranking(local, split)) for split in splits}}
    if kind == "Classification":
        found = read_classes(local, splits)
    elif kind == "Clustering":
        found = {split: read_clusters(local, split) for split in splits}
    else:
        found = {split: read_pairs(local, split) for split in splits}
    made = {split: datasets.Dataset.from_dict(columns) for split, columns in found.items()}
    return datasets.DatasetDict(made)


def _ranking(found: Ranking) -> dict[str, Any]:
    return {
        "corpus": datasets.Dataset.from_dict(found.corpus),
        "queries": datasets.Dataset.from_dict(found.queries),
        "relevant_docs": found.relevant,
        "top_ranked": found.candidates,
    }


def evaluate_task(
    task: Task,
    opened: Any,
    embed: Embed,
    prefixes: Mapping[str, str],
    facts: Mapping[str, Any],
    revision: str,
    fingerprint: str,
) -> list[TaskResult]:
    """Score one task.

    Args:
        task: which.
        opened: by `open_task`.
        embed: texts to vectors.
        prefixes: of its queries and documents.
        facts: to stand in the record beside what is found here.
        revision: of the data.
        fingerprint: the encoder's.

    Returns:
        The vectors' record; of retrieval also BM25's and the hybrid's.
    """
    began = time.monotonic()
    encoder = ActorEncoder(embed, prefixes)
    rankings: dict[str, _Seen] = {}
    if task.type in ("Retrieval", "Reranking"):
        opened.task_specific_scores = _watcher(rankings)
    with _quiet():
        if task.type in ("STS", "PairClassification", "Clustering"):
            encoder.vectors(_all_texts(opened, task))
        found = mteb.evaluate(
            encoder, opened, cache=None, co2_tracker=False, show_progress_bar=False,
            encode_kwargs={"batch_size": TEXTS_PER_BATCH, "show_progress_bar": False},
        ).task_results[0].scores  # fmt: skip
    scores = {split: one[0] for split, one in found.items()}
    metrics = {
        name: float(value)
        for name, value in scores[task.split].items()
        if isinstance(value, (int, float)) and math.isfinite(value) and "nauc" not in name
    }
    metrics.pop("main_score")
    if task.mteb_splits and set(task.mteb_splits) <= set(scores):
        mean = np.mean([scores[split]["main_score"] for split in task.mteb_splits])
        metrics[MTEB_MAIN] = float(mean)
    data = _split(opened, task)
    own = dict(facts) | {"split": task.split, "prefixes": dict(prefixes), "mteb": mteb.__version__}
    common: dict[str, Any] = {"task": task.name, "type": task.type, "metric": task.metric}
    if rankings:
        seen = rankings[task.split]
        own |= {"queries": len(data["queries"]), "documents": len(data["corpus"])}
        units = seen.units
    else:
        own |= {"rows": len(data)}
        units = _units(task, data, scores[task.split], encoder)
    vectors = TaskResult(
        **common, metrics=metrics, units=units, facts=own | {"texts_embedded": encoder.texts},
        seconds=time.monotonic() - began, revision=revision, fingerprint=fingerprint,
    )  # fmt: skip
    if task.type != "Retrieval":
        return [vectors]
    own["prefixes"] = {"query": "", "document": ""}  # of words
    others = _baselines(common, data, seen, own, opened.ignore_identical_ids)
    return [vectors, *(replace(one, revision=revision, fingerprint=fingerprint) for one in others)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without what mteb and scikit-learn say about their own protocol."""
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("mteb", "datasets")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _split(opened: Any, task: Task) -> Any:
    """The split's data, of pairs and sets a Dataset."""
    data = opened.dataset
    if task.type in ("Retrieval", "Reranking") or task.subset != "default":
        data = data[task.subset]
    data = data[task.split]
    if task.type == "PairClassification" and len(data) == 1:
        return datasets.Dataset.from_dict(data[0])  # mteb 1's form, which the hub still has
    return data


def _all_texts(opened: Any, task: Task) -> list[str]:
    data = _split(opened, task)
    if task.type == "Clustering":
        return [text for texts in data[opened.input_column_name] for text in texts]
    return [*data["sentence1"], *data["sentence2"]]


def _units(
    task: Task, data: Any, scores: Mapping[str, Any], encoder: ActorEncoder
) -> dict[str, Units]:
    """What the main metric is made of, where it isn't a ranking's."""
    if task.type == "Classification":
        values = [float(one["accuracy"]) for one in scores["scores_per_experiment"]]
        return {"accuracy": Units(names=_named("experiment", values), values=values)}
    if task.type == "Clustering":
        values = [float(value) for value in scores["v_measures"]]
        return {"v_measure": Units(names=_named("set", values), values=values)}
    first, second = (encoder.vectors(list(data[name])) for name in ("sentence1", "sentence2"))
    # mteb's way, by which equal texts are equally near; of inner products rounding makes an order.
    values = (1 - paired_cosine_distances(first, second)).astype(np.float64).tolist()
    labels = [float(label) for label in data["score" if task.type == "STS" else "labels"]]
    statistic: Any = "spearman" if task.type == "STS" else "average_precision"
    return {
        task.metric: Units(
            statistic=statistic, names=_named("pair", values), values=values, labels=labels
        )
    }


def _named(what: str, values: Sequence[float]) -> list[str]:
    return [f"{what} {i}" for i in range(len(values))]


class _Seen:
    """What mteb found for each query of a split: metrics, and the first `DEPTH` documents."""

    def __init__(self, scores: Mapping[str, Mapping[str, float]], results: Any) -> None:
        queries = sorted(scores)
        self.units = {
            ours: Units(names=queries, values=[float(scores[query][name]) for query in queries])
            for ours, name in PER_QUERY.items()
        }
        self.ranked: dict[str, list[str]] = {}
        for query, documents in results.items():
            # trec_eval's own order: equal scores by id, the last first
            best = sorted(documents.items(), key=lambda one: (one[1], one[0]), reverse=True)
            self.ranked[query] = [document for document, _ in best[:DEPTH]]


def _watcher(rankings: dict[str, _Seen]) -> Callable[..., dict[str, float]]:
    """Look in where mteb asks a task for scores of its own, and make none."""

    def watch(scores: Any, _qrels: Any, results: Any, hf_split: str, **_: Any) -> dict[str, float]:
        rankings[hf_split] = _Seen(scores, results)
        return {}

    return watch


def _baselines(
    common: Mapping[str, Any],
    data: Any,
    seen: _Seen,
    facts: Mapping[str, Any],
    not_itself: bool,
) -> Iterator[TaskResult]:
    """BM25 alone, and fused with the vectors, on the same queries."""
    began = time.monotonic()
    ids = list(data["corpus"]["id"])
    place = {name: i for i, name in enumerate(ids)}
    queries = [(one["id"], one["text"]) for one in data["queries"]]
    texts = [f"{one.get('title') or ''} {one['text']}".strip() for one in data["corpus"]]
    relevance = [
        {place[document]: grade for document, grade in data["relevant_docs"][name].items()}
        for name, _ in queries
    ]
    by_words = bm25([text for _, text in queries], texts, DEPTH)
    by_vectors = np.full((len(queries), DEPTH), -1, np.int64)
    for row, (name, _) in enumerate(queries):
        found = [place[document] for document in seen.ranked[name]]
        by_vectors[row, : len(found)] = found
        if not_itself and name in place:
            others = by_words[row][by_words[row] != place[name]]
            by_words[row] = np.pad(others, (0, DEPTH - len(others)), constant_values=-1)
    for ranking, ranked in (("bm25", by_words), ("hybrid", fuse([by_words, by_vectors], DEPTH))):
        values = {
            name.replace("@", "_at_"): one
            for name, one in ranking_metrics(ranked, relevance, DEPTHS).items()
        }
        yield TaskResult(
            **common,
            ranking=ranking,  # type: ignore[arg-type]
            metrics={name: float(one.mean()) for name, one in values.items()},
            units={
                name: Units(names=[query for query, _ in queries], values=values[name].tolist())
                for name in ("ndcg_at_10", "recall_at_10")
            },
            facts=dict(facts),
            seconds=time.monotonic() - began,
        )
