"""Pairs on their way to hard negatives, with what is known of their queries; and what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stella_ray.learn.examples import ExampleStore, text_keys

ROWS_AT_ONCE = 8_192

POSITIVE_TEXTS = 64
"""Positives of a query whose texts near-duplicates are looked for by; exact copies are known of
all."""

PAIR = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("query", pa.string()),
        pa.field("passage", pa.string()),
        pa.field("negatives", pa.list_(pa.string())),
    ]
)
"""A pair, its number, and the negatives that it came with."""

MINED = pa.struct(
    [
        pa.field("source", pa.string()),
        pa.field("id", pa.string()),
        pa.field("rank", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("positive_score", pa.float32()),
        pa.field("filter", pa.string()),
    ]
)
"""Where a negative comes from: bm25, vector or given (the rest is null then), its id in the corpus,
its rank from 1, its score and the pair's own passage's, and the version of the filters."""

OUT = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("passage", pa.string()),
        pa.field("negatives", pa.list_(pa.string())),
        pa.field("mined", pa.list_(MINED)),
        pa.field("positive_bm25", pa.float32()),
        pa.field("positive_vector", pa.float32()),
    ]
)
"""What mining writes; `mined` is parallel to `negatives`; the last two are the passage's own
scores, null where that method wasn't asked for."""

CANDIDATE = pa.schema(
    [pa.field("place", pa.int64()), pa.field("id", pa.string()), pa.field("text", pa.string())]
)
"""A passage that may become a negative; `place` is its number in the corpus; where the text is
null, the row can't be used."""


@dataclass(frozen=True)
class Answers:
    """What is known to answer the queries of some pairs.

    Attributes:
        texts: passages of each pair's query, its own first, `POSITIVE_TEXTS` at most.
        known: of each pair the `text_keys` of all its query's passages, sorted, int64; pairs of one
            query share the array.
    """

    texts: list[list[str]]
    known: list[np.ndarray]


class Pairs:
    """The pairs of a store by number, with what is known of their queries; 25 bytes a pair here.

    Args:
        store: of a source of kind pairs.
    """

    def __init__(self, store: ExampleStore) -> None:
        self.store = store
        parts = [
            np.stack([text_keys([row[name] for row in rows]) for name in ("query", "passage")])
            for rows in map(store.take, self._ranges())
        ]
        self._queries, passages = np.concatenate([np.empty((2, 0), np.int64), *parts], axis=1)
        self._by_query = np.argsort(self._queries, kind="stable")
        self._ordered = self._queries[self._by_query]
        self._first = np.zeros(store.rows, bool)
        self._first[np.unique(passages, return_index=True)[1]] = True

    def _ranges(self) -> Iterator[np.ndarray]:
        for start in range(0, self.store.rows, ROWS_AT_ONCE):
            yield np.arange(start, min(self.store.rows, start + ROWS_AT_ONCE))

    def take(self, start: int, stop: int) -> pa.Table:
        """These pairs, PAIR."""
        numbers = range(start, min(stop, self.store.rows))
        rows = self.store.take(np.asarray(numbers, np.int64))
        return pa.Table.from_pylist(
            [{**row, "row": number} for number, row in zip(numbers, rows, strict=True)], schema=PAIR
        )

    def answers(self, rows: pa.Table) -> Answers:
        """What is known to answer the queries of these pairs, PAIR."""
        numbers = rows.column("row").to_numpy()
        keys = self._queries[numbers]
        bounds = (np.searchsorted(self._ordered, keys, side=side) for side in ("left", "right"))
        same = [
            self._by_query[a : min(b, a + POSITIVE_TEXTS)]
            for a, b in zip(*(bound.tolist() for bound in bounds), strict=True)
        ]
        asked = np.unique(np.concatenate([np.empty(0, np.int64), *same]))
        passages = (row["passage"] for row in self.store.take(asked))
        texts = dict(zip(asked.tolist(), passages, strict=True))
        own = rows.column("passage").to_pylist()
        known = {key: self.store.positives_of(key) for key in set(keys.tolist())}
        return Answers(
            [
                list(dict.fromkeys([passage, *(texts[other] for other in others.tolist())]))
                for passage, others in zip(own, same, strict=True)
            ],
            [known[key] for key in keys.tolist()],
        )

    def passages(self) -> Iterator[pa.Table]:
        """The distinct passages, CANDIDATE; the id is the number of the first pair that has it."""
        for numbers in self._ranges():
            numbers = numbers[self._first[numbers]]
            texts = [row["passage"] for row in self.store.take(numbers)]
            ids = [str(number) for number in numbers.tolist()]
            yield pa.table([pa.array(numbers), ids, texts], schema=CANDIDATE)
