"""Hard negatives for pairs: candidates by each method, filters, and what is taken of them."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from stella_ray.encode.models import EncoderSettings
from stella_ray.learn.mined import CANDIDATE, OUT, Answers, Pairs
from stella_ray.learn.negatives import (
    EXAMINED,
    Candidate,
    FilterSettings,
    Order,
    Sieve,
    drawn,
    picked,
    shortlist,
)
from stella_ray.pipeline.candidates import Candidates, texts_in_part, texts_in_table
from stella_ray.pipeline.cluster import Pool, keep_ray_data_quiet
from stella_ray.pipeline.queries import bm25_hits, encoded, vector_hits, windows
from stella_ray.pipeline.tasks import in_order, tasks_at_once
from stella_ray.table.vectors import VectorTable

log = logging.getLogger(__name__)

Method = Literal["bm25", "vector"]

ROWS_PER_PICK = 512
"""Pairs of one task of picking: of 32 candidates each, 16,384 texts are in its memory."""


@dataclass(frozen=True)
class Rules:
    """How negatives are chosen among hits.

    Attributes:
        filters: which candidates are none.
        negatives: to take for each pair, of all methods together.
        order: by chance or from the best on.
        seed: of the chance.
    """

    filters: FilterSettings
    negatives: int
    order: Order
    seed: int


@dataclass(frozen=True)
class Listed:
    """One method's candidates for some pairs, in the order in which they are wanted.

    Attributes:
        method: which.
        ranks: of each pair's candidates, from 1, int64.
        hits: the same candidates, HIT.
        positives: each pair's own passage's score, float32 [pairs].
    """

    method: Method
    ranks: list[np.ndarray]
    hits: list[np.ndarray]
    positives: np.ndarray


@dataclass(frozen=True)
class Mining:
    """What to mine, where and how.

    Attributes:
        pairs: whose queries.
        rules: how negatives are chosen.
        methods: in the order in which they take turns.
        candidates: the corpus of bm25; None: no such negatives.
        table: that of vector, an open version; likewise.
        encoder: of vector, and its fingerprint's digest.
        queries_at_once: pairs of a window.
        part_rows: of the table that one task reads, to search exactly; None: by the index.
        pool: sizes.
    """

    pairs: Pairs
    rules: Rules
    methods: tuple[Method, ...]
    candidates: Candidates | None
    table: VectorTable | None
    encoder: tuple[EncoderSettings, str]
    queries_at_once: int
    part_rows: int | None
    pool: Pool

    @property
    def cpus(self) -> float:
        """Of a task: beside encoders on the CPU they share what those leave over."""
        return 1.0 if self.table is None else self.pool.task_cpus

    def run(self, counts: Counter[str]) -> Iterator[Iterator[pa.Table]]:
        """Yield windows of pairs, each as tables of the schema OUT, all in the pairs' order.

        Args:
            counts: what each filter took, and what was taken, is added here.
        """
        vectors = None if self.table is None else encoded(self.pairs, *self.encoder, self.pool)
        depth = self.rules.filters.rank_to
        for rows, vector, own in windows(self.pairs, self.queries_at_once, vectors):
            found: dict[Method, tuple[np.ndarray, np.ndarray]] = {}
            if self.candidates is not None:
                found["bm25"] = bm25_hits(rows, self.candidates, depth, self.cpus)
            if self.table is not None and vector is not None and own is not None:
                hits = vector_hits(self.table, vector, depth, self.part_rows, self.cpus)
                found["vector"] = hits, own
            yield self._picked(rows, found, counts)
            log.info("mined %s of %s pairs", f"{counts['pairs']:,}", f"{self.pairs.store.rows:,}")

    def _picked(
        self,
        rows: pa.Table,
        found: dict[Method, tuple[np.ndarray, np.ndarray]],
        counts: Counter[str],
    ) -> Iterator[pa.Table]:
        """The window's rows with their negatives, ROWS_PER_PICK at a time."""
        chunks = [slice(i, i + ROWS_PER_PICK) for i in range(0, len(rows), ROWS_PER_PICK)]
        numbers = rows["row"].to_numpy()
        lists: list[list[Listed]] = [[] for _ in chunks]
        texts: list[list[list[Any]]] = [[] for _ in chunks]
        for method in self.methods:
            hits, positives = found[method]
            for own, some in zip(lists, chunks, strict=True):
                own.append(self._list(method, numbers[some], hits[some], positives[some], counts))
            wanted = [_places(own[-1]) for own in lists]
            for own_texts, blocks in zip(texts, self._texts(method, wanted), strict=True):
                own_texts.append(blocks)
        pick = ray.remote(pick_rows).options(num_cpus=self.cpus)

        def tasks() -> Iterator[Any]:
            for start, own in zip(range(0, len(rows), ROWS_PER_PICK), lists, strict=True):
                part, blocks = rows.slice(start, ROWS_PER_PICK), texts.pop(0)
                sizes, flat = [len(one) for one in blocks], itertools.chain.from_iterable(blocks)
                yield pick.remote(self.rules, part, self.pairs.answers(part), own, sizes, *flat)

        for table, counted in in_order(tasks(), tasks_at_once(self.cpus)):
            counts.update(counted)
            yield table

    def _list(
        self,
        method: Method,
        numbers: np.ndarray,
        hits: np.ndarray,
        positives: np.ndarray,
        counts: Counter[str],
    ) -> Listed:
        """The candidates whose texts are worth reading."""
        rules, own = self.rules, Counter[str]()
        share = rules.filters.bm25_ceiling if method == "bm25" else rules.filters.ceiling
        ranks = [
            drawn(
                shortlist(mine, float(positive), share, rules.filters, own),
                rules.order,
                EXAMINED * rules.negatives,
                rules.seed,
                method,
                int(number),
            )
            for number, mine, positive in zip(numbers, hits, positives, strict=True)
        ]
        counts.update({f"{method}.{name}": count for name, count in own.items()})
        taken = [mine[rank - 1] for mine, rank in zip(hits, ranks, strict=True)]
        return Listed(method, ranks, taken, positives)

    def _texts(self, method: Method, wanted: list[np.ndarray]) -> list[list[Any]]:
        """Tasks that read texts, for each of these sets of hits; each part is read once for all."""
        if method == "vector" and self.table is not None:
            table = self.table
            take = ray.remote(texts_in_table).options(num_cpus=self.cpus)
            return [
                [take.remote(table.uri, table.version, table.storage, own["place"])]
                if len(own)
                else []
                for own in wanted
            ]
        found: list[list[Any]] = [[] for _ in wanted]
        read = ray.remote(texts_in_part).options(num_cpus=self.cpus, num_returns=len(wanted))
        for part, blocks in enumerate(self.candidates.parts if self.candidates else []):
            places = [own["place"][own["part"] == part] for own in wanted]
            if any(map(len, places)):
                tables = read.remote(places, *blocks)
                for own, table in zip(found, [tables] if len(found) == 1 else tables, strict=True):
                    own.append(table)
        return found


def _places(listed: Listed) -> np.ndarray:
    """Part and place of all candidates, each once."""
    return np.unique(np.concatenate(listed.hits)[["part", "place"]])


def pick_rows(
    rules: Rules,
    rows: pa.Table,
    answers: Answers,
    lists: Sequence[Listed],
    sizes: Sequence[int],
    *texts: pa.Table,
) -> tuple[pa.Table, Counter[str]]:
    """Choose the negatives of some pairs.

    Args:
        rules: how.
        rows: PAIR.
        answers: what is known to answer their queries.
        lists: each method's candidates.
        sizes: how many of the tables of texts are each list's.
        texts: CANDIDATE; first those of the first list, and so on.

    Returns:
        OUT, and what each filter took.
    """
    keep_ray_data_quiet()
    counts = Counter({"pairs": len(rows)})
    tables = iter(texts)
    known = [_by_place(itertools.islice(tables, size)) for size in sizes]
    out: list[dict[str, Any]] = []
    for number, row in enumerate(rows.to_pylist()):
        query, positives = row["query"], answers.texts[number]
        sieve = Sieve(query, answers.known[number], positives, rules.filters.near_duplicate)
        given = _given(row["negatives"], sieve, counts)
        candidates = [
            _candidates(one, number, texts) for one, texts in zip(lists, known, strict=True)
        ]
        taken = picked(sieve, candidates, max(0, rules.negatives - len(given)), counts)
        counts["without_negatives"] += not (given or taken)
        own = {f"positive_{one.method}": float(one.positives[number]) for one in lists}
        out.append(
            {
                "query": query,
                "passage": row["passage"],
                "negatives": given + [one.text for one in taken],
                "mined": [{"source": "given"}] * len(given)
                + [_told(one, rules.filters.version) for one in taken],
                **own,
            }
        )
    return pa.Table.from_pylist(out, schema=OUT), counts


def _by_place(tables: Iterable[pa.Table]) -> dict[int, tuple[str, str]]:
    """Ids and texts, CANDIDATE, by place."""
    rows = pa.concat_tables([CANDIDATE.empty_table(), *tables])
    places, ids, texts = (rows.column(name).to_pylist() for name in CANDIDATE.names)
    return dict(zip(places, zip(ids, texts, strict=True), strict=True))


def _given(texts: Sequence[str], sieve: Sieve, counts: Counter[str]) -> list[str]:
    """The negatives that a pair came with, without those that answer its query."""
    kept = []
    for text in texts:
        if fault := sieve.fault(text, chosen=True):
            counts[f"given.{fault}"] += 1
            continue
        sieve.take(text)
        kept.append(text)
    counts["given.taken"] += len(kept)
    return kept


def _candidates(
    listed: Listed, number: int, texts: dict[int, tuple[str, str]]
) -> Iterator[Candidate]:
    ranks, positive = listed.ranks[number].tolist(), float(listed.positives[number])
    for rank, (score, _, place) in zip(ranks, listed.hits[number].tolist(), strict=True):
        name, text = texts[place]
        yield Candidate(listed.method, name, text, rank, score, positive)


def _told(one: Candidate, version: str) -> dict[str, Any]:
    return {**one._asdict(), "filter": version}
