"""C-MTEB by mteb's own protocol: its tasks score; the data may be local, the vectors are ours."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import mteb
import numpy as np
import torch  # noqa: F401 - mteb's evaluators import it: here that goes beside the encoder's loading
from sklearn.metrics.pairwise import paired_cosine_distances

from stella_ray.errors import CorpusError
from stella_ray.evaluate.local_data import (
    LocalTask,
    Ranking,
    read_classes,
    read_clusters,
    read_pairs,
    read_ranking,
)
from stella_ray.evaluate.mteb_encoder import ActorEncoder, Embed
from stella_ray.evaluate.mteb_rankings import Seen, baselines, watcher
from stella_ray.evaluate.results import TaskResult, Units
from stella_ray.evaluate.tasks import MTEB_MAIN, Task

log = logging.getLogger("stella_ray.evaluate")

TEXTS_PER_BATCH = 1_024
"""Of mteb's loaders, which only hand texts on: the encoder cuts batches of its own."""


def open_task(task: Task, local: LocalTask | None) -> Any:
    """Open mteb's task with its data, from local files or from the hub.

    Raises:
        CorpusError: the files are wrong, or the hub can't be reached.
    """
    splits = list(dict.fromkeys((task.split, *task.mteb_splits)))
    if local is not None:
        splits = [split for split in splits if split == task.split or local.has(split)]
    with _quiet():
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
    rankings: dict[str, Seen] = {}
    if task.type in ("Retrieval", "Reranking"):
        opened.task_specific_scores = watcher(rankings)
    with _quiet():
        if task.type in ("STS", "PairClassification", "Clustering"):
            encoder.vectors(_all_texts(opened, task))
        # Not mteb.evaluate(), which imports all of sentence-transformers to see that this isn't one
        # of its models: 8 s of CPU.
        scores = {
            split: opened.evaluate(
                encoder, split,
                encode_kwargs={"batch_size": TEXTS_PER_BATCH, "show_progress_bar": False},
            )[task.subset]
            for split in opened.eval_splits
        }  # fmt: skip
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
    others = baselines(common, data, seen, own, opened.ignore_identical_ids)
    return [vectors, *(replace(one, revision=revision, fingerprint=fingerprint) for one in others)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without what the libraries say about themselves.

    That newer tasks exist, that a regression didn't converge: it's the protocol; that the hub is
    asked again: what comes of it is told.
    """
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("mteb", "datasets", "huggingface_hub", "httpx")]
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
