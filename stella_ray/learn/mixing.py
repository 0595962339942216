"""One iterator for each type of example, taken in turn: which rows each step learns from.

A step's batch is a pure function of (seed, step): of the visiting order comes the source, its epoch
and its step in it; of these the rows. So a run that resumes needs one number to go on with exactly
the batches that it would have had, and W workers cut the same batch into W parts: every worker sees
the same source at the same step, whatever W is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stella_ray.errors import SettingsError
from stella_ray.learn.contrastive import (
    COSENT_SCALE,
    INFO_NCE_SCALE,
    cosent,
    cosines,
    info_nce,
    products,
    same_texts,
    too_similar,
)
from stella_ray.learn.examples import ExampleStore, text_keys
from stella_ray.learn.shuffle import hashes, key_of, permuted, shares
from stella_ray.learn.sources import ExampleSource


@dataclass(frozen=True)
class Batch:
    """One worker's rows of a step, as texts with their prefixes.

    Attributes:
        source: the type; says which loss, its scale and factor.
        epoch: of the source, from 0.
        step: in the epoch, from 0.
        rows: their numbers in the store, int64 [B].
        rows_of_all: rows of the step over all workers.
        queries: first texts, B.
        passages: second texts: row by row the B own ones, then the hard negatives, N in all.
        owner: the row that brought each passage, int64 [N].
        labels: float64 [B]; NaN for pairs.
        query_keys: of the queries without prefix, `examples.text_key`, int64 [B].
        passage_keys: of the passages without prefix, int64 [N].
        known_keys: of all passages known to answer each query, its own one last, int64 [B, K].
        prefixed: how many rows have the prefixes.
    """

    source: ExampleSource
    epoch: int
    step: int
    rows: np.ndarray
    rows_of_all: int
    queries: list[str]
    passages: list[str]
    owner: np.ndarray
    labels: np.ndarray
    query_keys: np.ndarray
    passage_keys: np.ndarray
    known_keys: np.ndarray
    prefixed: int


class ExampleStream:
    """The endless batches of one source: an epoch's end begins the next, in another order.

    Args:
        source: its settings.
        store: its rows.
        seed: of everything random.
        query_prefix: put before the queries that get one.
        passage_prefix: put before their passages and hard negatives.

    Raises:
        SettingsError: not even one batch in an epoch.
    """

    def __init__(
        self,
        source: ExampleSource,
        store: ExampleStore,
        seed: int,
        query_prefix: str = "",
        passage_prefix: str = "",
    ) -> None:
        self.source, self.store, self.seed = source, store, seed
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix
        keep = source.last_batch == "keep"
        self.steps_per_epoch = (store.rows + keep * (source.batch_size - 1)) // source.batch_size
        if not self.steps_per_epoch:
            raise SettingsError(
                f"source {source.name!r}: batch_size {source.batch_size} is above its"
                f" {store.rows} rows; lower it, or say last_batch keep"
            )

    def rows(self, epoch: int, step: int) -> np.ndarray:
        """The rows of a step over all workers, int64 [batch_size], fewer in a last one kept."""
        first = step * self.source.batch_size
        last = min(first + self.source.batch_size, self.store.rows)
        order = key_of(self.seed, self.source.name, "order", epoch)
        return permuted(np.arange(first, last), self.store.rows, order)

    def batch(self, epoch: int, step: int, worker: int = 0, workers: int = 1) -> Batch:
        """One worker's part of a step, of `batch_size / workers` rows, one more or less.

        A last batch that was kept may leave a worker without rows.
        """
        everyones = self.rows(epoch, step)
        first, last = (len(everyones) * edge // workers for edge in (worker, worker + 1))
        rows = everyones[first:last]
        examples = self.store.take(rows)
        queries = [one["query"] for one in examples]
        passages = [one["passage"] for one in examples]
        prefixed = [self._prefixed(q, p) for q, p in zip(queries, passages, strict=True)]
        owner = list(range(len(rows)))
        for i, picked in self._negatives(rows, epoch, [one["negatives"] for one in examples]):
            passages += picked
            owner += [i] * len(picked)
        query_keys, passage_keys = text_keys(queries), text_keys(passages)
        known_keys = passage_keys[: len(rows), None]
        if self.source.kind == "pairs":
            known_keys = np.hstack([self.store.known_positives(query_keys), known_keys])
        return Batch(
            source=self.source,
            epoch=epoch,
            step=step,
            rows=rows,
            rows_of_all=len(everyones),
            queries=[
                self.query_prefix * on + text for on, text in zip(prefixed, queries, strict=True)
            ],
            # A negative goes as its row's own passage does, or the prefix would tell them apart.
            passages=[
                self.passage_prefix * prefixed[i] + text
                for i, text in zip(owner, passages, strict=True)
            ],
            owner=np.asarray(owner, np.int64),
            labels=np.asarray([one["label"] for one in examples], np.float64),
            query_keys=query_keys,
            passage_keys=passage_keys,
            known_keys=known_keys,
            prefixed=sum(prefixed),
        )

    def batches(self, first: int = 0, worker: int = 0, workers: int = 1) -> Iterator[Batch]:
        """All steps from the source's `first` on, without end."""
        while True:
            yield self.batch(*divmod(first, self.steps_per_epoch), worker, workers)
            first += 1

    def _prefixed(self, query: str, passage: str) -> bool:
        rule = self.source.prefix
        if rule == "auto":
            rule = "by_length" if self.source.kind == "pairs" else "never"
        if rule == "by_length":
            short = len(query) < self.source.short_query
            return short and len(passage) > self.source.long_passage
        return rule == "always"

    def _negatives(
        self, rows: np.ndarray, epoch: int, all_of_row: list[list[str]]
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows that give hard negatives now, and which; a function of row and epoch."""
        gives = shares(rows, key_of(self.seed, self.source.name, "gives", epoch))
        which = hashes(rows, key_of(self.seed, self.source.name, "which", epoch))
        for i in np.flatnonzero(gives < self.source.negative_share).tolist():
            if negatives := all_of_row[i]:
                order = np.argsort(hashes(np.arange(len(negatives)), int(which[i])))
                yield i, [negatives[at] for at in order[: self.source.negatives_per_row]]


class Mixture:
    """Sources taken in turn, one a step, in an order that is drawn anew each round.

    A round has as many steps of a source as its weight says. A source that ends begins its next
    epoch while the others go on with theirs.

    Raises:
        SettingsError: no source, or two of one name.
    """

    def __init__(self, streams: Sequence[ExampleStream], seed: int) -> None:
        names = [stream.source.name for stream in streams]
        if not names or len(set(names)) < len(names):
            raise SettingsError(
                f"the sources are called {', '.join(names) or 'nothing'}; expected one or more,"
                " each with a name of its own"
            )
        self.streams, self.seed = list(streams), seed
        self._turns = np.repeat(np.arange(len(names)), [stream.source.weight for stream in streams])

    @property
    def steps_per_round(self) -> int:
        """The sum of the weights."""
        return len(self._turns)

    def visit(self, step: int) -> tuple[int, int, int]:
        """Which source a step of the run (from 0) takes, its epoch and its step in it."""
        round_, place = divmod(step, len(self._turns))
        order = permuted(np.arange(len(self._turns)), len(self._turns), self._round_key(round_))
        turns = self._turns[order]
        source = int(turns[place])
        before = round_ * self.streams[source].source.weight
        before += int((turns[:place] == source).sum())
        return source, *divmod(before, self.streams[source].steps_per_epoch)

    def batch(self, step: int, worker: int = 0, workers: int = 1) -> Batch:
        """One worker's part of a step of the run."""
        source, epoch, step_of_epoch = self.visit(step)
        return self.streams[source].batch(epoch, step_of_epoch, worker, workers)

    def digest(self) -> str:
        """What a resumed run must share with the run it goes on from to see the same batches."""
        parts = [
            [
                {**dataclasses.asdict(stream.source), "files": stream.store.digest},
                stream.query_prefix,
                stream.passage_prefix,
                stream.seed,
            ]
            for stream in self.streams
        ]
        return f"{key_of(self.seed, json.dumps(parts, sort_keys=True)):016x}"

    def _round_key(self, round_: int) -> int:
        return key_of(self.seed, "round", round_)


def batch_loss(
    batch: Batch,
    queries_BD: Tensor,
    passages_ND: Tensor,
    guide: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The loss of a whole step's batch, by its source's loss, scale and factor.

    Legend: B rows, N passages, D numbers of a vector.

    Args:
        batch: the rows.
        queries_BD: unit vectors of its queries.
        passages_ND: unit vectors of its passages.
        guide: both by an encoder that is trusted to know false negatives.

    Returns:
        One number, float32 or float64.
    """
    source = batch.source
    if source.loss == "cosent":
        labels = torch.from_numpy(batch.labels).to(queries_BD.device)
        loss = cosent(cosines(queries_BD, passages_ND), labels, source.scale or COSENT_SCALE)
        return source.loss_factor * loss
    query_keys, known, passage_keys = (
        torch.from_numpy(keys).to(queries_BD.device)
        for keys in (batch.query_keys, batch.known_keys, batch.passage_keys)
    )
    own_B = torch.arange(len(queries_BD), device=queries_BD.device)
    ignored = same_texts(query_keys, known, passage_keys, own_B)
    if guide is not None and source.guide_margin is not None:
        ignored |= too_similar(products(*guide), own_B, source.guide_margin, "relative")
    scale = source.scale or INFO_NCE_SCALE
    loss_B = info_nce(
        queries_BD,
        passages_ND,
        own_B,
        scale=scale,
        ignored=ignored,
        symmetric=source.symmetric,
    )
    return source.loss_factor * loss_B.mean()
