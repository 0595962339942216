"""Held-out examples during training: does retrieval get better, and similarity no worse?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import SettingsError
from stella_ray.learn.examples import text_keys
from stella_ray.learn.reading import Example, find_files, read_examples
from stella_ray.learn.sources import ExampleSource
from stella_ray.learn.statistics import spearman
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.texts import Embedders
from stella_ray.storage import StorageSettings

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder

MOST_TEXTS = 200_000
"""Of one set: their vectors are in one process, 0.8 GB of 1,024 numbers each."""
DEPTHS = (1, 5, 10)
QUERIES_AT_ONCE = 256


def evaluate_sets(
    sets: Sequence[ExampleSource],
    encoder: EncoderSettings,
    pool: Pool,
    storage: StorageSettings = StorageSettings(),
    opened: Callable[[EncoderSettings, str], Encoder] | None = None,
) -> dict[str, float]:
    """Measure an encoder on examples it doesn't learn from.

    Pairs: Recall@1, 5 and 10 of each query's passages among those of all rows, hard negatives
    included, with the encoder's prefixes. Scored pairs and NLI: Spearman's correlation of cosine
    and label, without prefixes.

    Args:
        sets: what to read; name, kind, files and columns count.
        encoder: a model folder.
        pool: sizes.
        storage: where S3 is.
        opened: how an actor comes by the encoder; by default it loads what the settings name.

    Returns:
        By "set/metric", 0 to 1 (Spearman: -1 to 1).

    Raises:
        SettingsError: a set has too many texts.
        CorpusError: a file can't be read.
    """
    spec = find_encoder(encoder)
    held = [_read(one, storage) for one in sets]
    texts: list[str] = []  # of all sets, so that the encoder is loaded once
    for one in held:
        prefixes = (spec.query_prefix, spec.passage_prefix) if one.pairs else ("", "")
        texts += [prefixes[0] + text for text in one.firsts]
        texts += [prefixes[1] + text for text in one.seconds]
    with Embedders(encoder, spec.fingerprint["digest"], pool, opened) as embedders:
        vectors = embedders.embed(texts)
    out: dict[str, float] = {}
    for one in held:
        own, vectors = np.split(vectors, [len(one.firsts) + len(one.seconds)])
        first_vectors, second_vectors = np.split(own, [len(one.firsts)])
        if one.pairs:
            found = recalls(first_vectors, second_vectors, one.relevant())
            out |= {f"{one.name}/recall@{k}": value for k, value in found.items()}
        else:
            at_first, at_second = one.places()
            cosines = (first_vectors[at_first] * second_vectors[at_second]).sum(1)
            labels = np.array([row.label for row in one.rows])
            out[f"{one.name}/spearman"] = float(
                spearman(cosines, labels, np.ones((len(labels), 1)))[0]
            )
    return out


@dataclass(frozen=True)
class _HeldOut:
    """A set's rows, and their distinct first and second texts, hard negatives among the second."""

    name: str
    pairs: bool
    rows: list[Example]
    firsts: list[str]
    seconds: list[str]

    def places(self) -> tuple[list[int], list[int]]:
        """Where each row's texts stand among the distinct ones."""
        at_first = {text: i for i, text in enumerate(self.firsts)}
        at_second = {text: i for i, text in enumerate(self.seconds)}
        return (
            [at_first[row.query] for row in self.rows],
            [at_second[row.passage] for row in self.rows],
        )

    def relevant(self) -> list[set[int]]:
        """Each query's passages, those that are equal but for width and spaces included."""
        keys = text_keys(self.seconds).tolist()
        of_key: dict[int, set[int]] = {}
        for i, key in enumerate(keys):
            of_key.setdefault(key, set()).add(i)
        out: list[set[int]] = [set() for _ in self.firsts]
        for query, passage in zip(*self.places(), strict=True):
            out[query] |= of_key[keys[passage]]
        return out


def _read(one: ExampleSource, storage: StorageSettings) -> _HeldOut:
    files = find_files(one, storage)
    rows = [row for path in files for row in read_examples(path, one, storage)]
    firsts = dict.fromkeys(row.query for row in rows)
    seconds = dict.fromkeys(text for row in rows for text in (row.passage, *row.negatives))
    if len(firsts) + len(seconds) > MOST_TEXTS:
        raise SettingsError(
            f"held-out set {one.name!r} has {len(firsts) + len(seconds):,} texts; expected"
            f" {MOST_TEXTS:,} at most, so give fewer of its rows"
        )
    return _HeldOut(one.name, one.kind == "pairs", rows, list(firsts), list(seconds))


def recalls(
    queries: np.ndarray, passages: np.ndarray, relevant: Sequence[set[int]]
) -> dict[int, float]:
    """Share of queries with a relevant passage among the k nearest, for each of `DEPTHS`.

    Args:
        queries: unit vectors, float32 [queries, dim].
        passages: unit vectors, float32 [passages, dim].
        relevant: the numbers of each query's passages.
    """
    ranks = np.empty(len(queries), np.int64)
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        scores = queries[first : first + QUERIES_AT_ONCE] @ passages.T
        for i, row in enumerate(scores, first):
            best = max(row[number] for number in relevant[i])
            ranks[i] = int((row > best).sum())  # passages before the best relevant one
    return {k: float((ranks < k).mean()) for k in DEPTHS}
