"""Does the encoder read the second half? Retrieval where the answer lies deep in the document.

The test of stella's model card, made from reading comprehension: the question is the query, its
paragraph the document to find among all of the set's. Beside the vectors stand BM25 and the fusion
of both, and each is told by where in the document the answer stands: an encoder that sees 512
tokens must fall where answers lie behind them, one that sees 1,024 must not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from stella_ray.errors import CorpusError, SettingsError
from stella_ray.evaluate.baselines import bm25, fuse
from stella_ray.evaluate.bootstrap import interval
from stella_ray.evaluate.metrics import ranking_metrics, search
from stella_ray.evaluate.questions import (
    BUCKETS,
    LONG_FROM,
    LONG_TEXT,
    UNKNOWN,
    EmptyQuestions,
    LongSet,
    RawSet,
    Reading,
    bucket,
    choose,
)
from stella_ray.evaluate.results import TaskResult, Units
from stella_ray.evaluate.retrieval_folder import is_folder, read_folder
from stella_ray.evaluate.simplified import is_traditional, simplifier
from stella_ray.evaluate.squad import ENDS, read_squad
from stella_ray.learn.reading import COMPRESSED, file_form
from stella_ray.storage import StorageSettings, absolute, filesystem
from stella_ray.storage_faults import storage_errors

METRICS = ("recall@5", "recall@1", "mrr@10")
"""The first is the card's."""

DEPTH = 100
"""Of the rankings, and of what is fused."""

Embed = Callable[[Sequence[str]], np.ndarray]
"""From texts that have their prefixes to unit vectors, float32 [texts, dim]."""


def find_long_sets(
    items: Sequence[str], storage: StorageSettings = StorageSettings()
) -> dict[str, str]:
    """Where the sets lie, by name.

    Args:
        items: sets, or folders of sets: a set is a folder with corpus.jsonl, queries.jsonl and
            qrels.tsv, or a file (see `read_squad`); its name is the folder's or the file's.
        storage: where S3 is.

    Raises:
        CorpusError: there is none, or two of one name.
    """
    out: dict[str, str] = {}
    for item in items:
        found = list(_sets_at(item, storage))
        if not found:
            raise CorpusError(
                f"{item}: no set; expected a folder with corpus.jsonl, queries.jsonl and qrels.tsv,"
                f" a file ({', '.join(ENDS)}), or a folder of these"
            )
        for path in found:
            name = path.rstrip("/").rpartition("/")[2]
            for end in (*COMPRESSED, *ENDS):
                name = name.removesuffix(end)
            if name in out:
                raise CorpusError(f"{path}: {out[name]} is called {name} too; rename one")
            out[name] = path
    return out


def _sets_at(item: str, storage: StorageSettings) -> Iterator[str]:
    uri = absolute(item).rstrip("/")
    store, path = filesystem(uri, storage)
    if is_folder(uri, storage):
        yield uri
        return
    with storage_errors(uri, storage, CorpusError):
        if store.isfile(path):
            yield from [uri] if file_form(uri, ENDS) else []
            return
        below = (
            sorted(str(one) for one in store.ls(path, detail=False)) if store.isdir(path) else []
        )
    for one in below:
        child = f"{uri}/{one.rstrip('/').rpartition('/')[2]}"
        if is_folder(child, storage) or (file_form(child, ENDS) and store.isfile(one)):
            yield child


def read_long_set(
    path: str,
    name: str,
    *,
    questions: str = "rule",
    short_per_long: float = 2.0,
    seed: int = 0,
    simplify: Literal["auto", "yes", "no"] = "auto",
    empty_questions: EmptyQuestions = "refuse",
    storage: StorageSettings = StorageSettings(),
) -> LongSet:
    """Read a set and choose its questions.

    Args:
        path: a folder or a file, as `find_long_sets` has it.
        name: of the set.
        questions: rule, all or the name of a field: see `choose`.
        short_per_long: short questions for each long one, where there are so many.
        seed: of the undersampling.
        simplify: whether to write traditional characters in their simplified form; auto: where
            frequent words are mostly traditional.
        empty_questions: what to do with a question without a text.
        storage: where S3 is.

    Raises:
        CorpusError: the set isn't right, or leaves nothing to ask.
        SettingsError: OpenCC is needed and isn't installed.
    """
    if short_per_long < 0:
        raise SettingsError(f"short_per_long {short_per_long} is below 0; expected 0 or more")
    read = read_folder if is_folder(path, storage) else read_squad
    reading = Reading(storage, empty_questions)
    raw: RawSet | None = read(path, reading) if simplify != "yes" else None
    if raw is None or (simplify == "auto" and is_traditional(raw.documents)):
        raw = read(path, dataclasses.replace(reading, convert=simplifier()))
        raw.counts["documents in simplified characters"] = len(raw.documents)
    return choose(raw, name, questions, short_per_long, seed)


def evaluate_long(
    sets: Sequence[LongSet],
    embed: Embed,
    *,
    query_prefix: str = "",
    passage_prefix: str = "",
    pool: Literal["each", "all"] = "each",
    fingerprint: str = "",
) -> Iterator[TaskResult]:
    """Measure an encoder on long sets: for each set three results, by vectors, BM25 and both fused.

    Recall@k is the share of a question's documents that stand among the first k (trec_eval's, which
    for a question about one document is whether it was found).

    Args:
        sets: what to ask of what.
        embed: the encoder; called once a pool.
        query_prefix: of questions.
        passage_prefix: of documents.
        pool: each: a set's questions search its own documents; all: the documents of all sets.
        fingerprint: the encoder's digest, for the records.

    Yields:
        Results with units for each of `METRICS`, by question's id. Among the facts are `starts`,
        where each unit's answer begins, and `positions`, the metrics by bucket.
    """
    for one in [sets] if pool == "all" else [[one] for one in sets]:
        documents = list(dict.fromkeys(text for each in one for text in each.documents))
        places = {text: at for at, text in enumerate(documents)}
        texts = [passage_prefix + text for text in documents]
        texts += [query_prefix + question.text for each in one for question in each.questions]
        began = time.perf_counter()
        vectors = embed(texts)
        assert vectors.shape[0] == len(texts), "embed() lost texts; this is a bug"
        spent = (time.perf_counter() - began) / len(one)
        passages, asked = np.split(vectors, [len(documents)])
        for each in one:
            own, asked = np.split(asked, [len(each.questions)])
            moved = [places[text] for text in each.documents]
            relevance = [{moved[d]: s for d, s in q.relevance.items()} for q in each.questions]
            starts = [question.start for question in each.questions]
            facts = {
                "pool": pool,
                "documents": len(documents),
                "counts": each.counts,
                "prefixes": {"query": query_prefix, "document": passage_prefix},
                "starts": starts,
            }
            queries = [question.text for question in each.questions]
            began = time.perf_counter()
            near = search(own, passages, DEPTH)[0]
            looked_up = time.perf_counter()
            words = bm25(queries, documents, DEPTH)
            counted = time.perf_counter()
            rankings: dict[Literal["vectors", "bm25", "hybrid"], tuple[np.ndarray, float]] = {
                "vectors": (near, spent + looked_up - began),
                "bm25": (words, counted - looked_up),
                "hybrid": (fuse([near, words], DEPTH), spent + counted - began),
            }
            revision = revision_of(each, sets, pool)
            for ranking, (ranked, seconds) in rankings.items():
                found = ranking_metrics(ranked, relevance, (1, 5, 10))
                names = [question.name for question in each.questions]
                yield TaskResult(
                    task=each.name if pool == "each" else f"{each.name} (all)",
                    type=LONG_TEXT,
                    ranking=ranking,
                    metric=METRICS[0],
                    metrics=_means(found, starts),
                    units={
                        metric: Units(names=names, values=found[metric].tolist())
                        for metric in METRICS
                    },
                    facts={**facts, "positions": by_position(found, starts)},
                    revision=revision,
                    fingerprint="" if ranking == "bm25" else fingerprint,
                    seconds=round(seconds, 3),
                )


def revision_of(one: LongSet, sets: Sequence[LongSet], pool: Literal["each", "all"]) -> str:
    """A set's data, and with one pool for all also what the others put there."""
    if pool == "each":
        return one.revision
    parts = [one.revision, *sorted(each.revision for each in sets)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _means(found: Mapping[str, np.ndarray], starts: Sequence[int]) -> dict[str, float]:
    """Each metric, and `long/` those of the questions whose answer lies past 512 characters."""
    long = np.array(starts) >= LONG_FROM
    out = {metric: float(found[metric].mean()) for metric in METRICS}
    if long.any():
        out |= {f"long/{metric}": float(found[metric][long].mean()) for metric in METRICS}
    return out


def by_position(found: Mapping[str, np.ndarray], starts: Sequence[int]) -> list[dict[str, Any]]:
    """The metrics by where the answer begins, each with its interval.

    Args:
        found: by metric, float64 [questions].
        starts: characters before each answer, -1 where it isn't known.

    Returns:
        For each bucket that has questions: its name, their number, and for each metric the mean and
        the ends of its interval.
    """
    of = np.array([bucket(start) for start in starts])
    out: list[dict[str, Any]] = []
    for name in (*BUCKETS, UNKNOWN):
        inside = np.flatnonzero(of == name)
        if not len(inside):
            continue
        row: dict[str, Any] = {"bucket": name, "questions": len(inside)}
        for metric in METRICS:
            values = found[metric][inside]
            ends = interval(Units(values=values.tolist()))
            row[metric] = [float(values.mean()), *ends]
        out.append(row)
    return out
