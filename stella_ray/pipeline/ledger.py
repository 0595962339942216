"""The books of a run: what the receipts add up to, and which rows the last commit must delete."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from stella_ray.rows import DOC_BYTES, KEY_BYTES, TEXT_BYTES, chunk_keys
from stella_ray.table.keys import KnownKeys, among, distinct

_KEY = f"S{KEY_BYTES}"
_TEXT = f"S{DOC_BYTES + TEXT_BYTES}"
_SUMS = (
    "rows_read", "truncated", "tokens", "padded_tokens", "shard_bytes", "read_seconds",
    "encode_seconds", "write_seconds",
)  # fmt: skip


@dataclass
class Counts:
    """Sums over the receipts."""

    rows_read: int = 0
    repeated: int = 0
    rejected: int = 0
    bad_shards: int = 0
    truncated: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    shard_bytes: float = 0.0
    read_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    encoded_from: float = math.inf
    first_encoded: float = math.inf
    encoded_until: float = -math.inf
    """When a window first met an encoder, when the first and when the last one was done."""

    def device_busy(self, encoders: int) -> float:
        """Share of the time since the first window in which these encoders were at work."""
        spent = max(1e-9, self.encoded_until - self.encoded_from)
        return self.encode_seconds / spent / max(1, encoders)


@dataclass
class Ledger:
    """Collects receipts; about 16 bytes a written row and one a known row.

    Keys are those of table rows; counts are of documents, which have several rows in a table of
    chunks. A document's rows have consecutive keys, the first of which is the document's own.

    Attributes:
        known: the keys that the run began with.
        counts: sums so far.
        pending: fragments that are written but not committed.
        pending_rows: their rows.
        losers: keys of rows that lost their id to another row.
        kept_unseen: documents that are kept though the corpus didn't show them.
    """

    known: KnownKeys
    counts: Counts = field(default_factory=Counts)
    pending: list[str] = field(default_factory=list)
    pending_rows: int = 0
    losers: np.ndarray = field(default_factory=lambda: np.empty(0, _KEY))
    kept_unseen: int = 0

    def __post_init__(self) -> None:
        self._seen = np.zeros(len(self.known.keys), bool)
        self._fresh: list[np.ndarray] = []
        self._refreshed: list[np.ndarray] = []
        self._broken = np.empty(0, _TEXT)
        self._broken_places: set[tuple[int, int, str]] = set()
        self._expected: np.ndarray | None = None

    @property
    def chunked(self) -> bool:
        """Whether documents may have several rows."""
        return self.known.chunks is not None

    def add(self, receipt: pa.Table) -> None:
        """Enter the receipts of written blocks."""
        self._expected = None
        for row in receipt.to_pylist():
            counts = self.counts
            for name in _SUMS:
                setattr(counts, name, getattr(counts, name) + row[name])
            for window in row["windows"] or ():
                counts.encoded_from = min(counts.encoded_from, window["began"])
                counts.first_encoded = min(counts.first_encoded, window["ended"])
                counts.encoded_until = max(counts.encoded_until, window["ended"])
            counts.repeated += row["repeated_rows"]
            counts.bad_shards += len(row["bad_shards"])
            self._count_rejects(row["rejects"], np.frombuffer(row["broken"], _KEY))
            seen = np.frombuffer(row["seen"], np.int64)
            places = np.unique(seen)
            new = places[~self._seen[places]]
            counts.repeated += self._documents_at(seen) - self._documents_at(new)
            self._seen[places] = True
            fresh, refreshed = (
                np.frombuffer(row[k], _KEY) for k in ("fresh_keys", "refreshed_keys")
            )
            self._fresh.append(fresh)
            self._refreshed.append(refreshed)
            self.pending += row["fragments"]
            self.pending_rows += len(fresh) + len(refreshed)

    def _count_rejects(self, rejects: list[dict[str, Any]], broken: np.ndarray) -> None:
        """Count each rejected document once; the last rejects are those of `broken` chunks."""
        plain = len(rejects) - len(broken)
        self.counts.rejected += plain
        self._broken = distinct(np.concatenate([self._broken, text_parts(broken)]))
        for one in rejects[plain:]:
            place = (one["shard"], one["row"], one["doc_id"])
            self.counts.rejected += not self.chunked or place not in self._broken_places
            self._broken_places.add(place)

    def take_pending(self) -> list[str]:
        """The pending fragments, for one try to commit them.

        They are pending no more even if that fails: a commit whose answer was lost may have been
        made, and a second one of the same fragments would double their rows. The next run sees.
        """
        taken, self.pending, self.pending_rows = self.pending, [], 0
        return taken

    def _documents_at(self, places: np.ndarray) -> int:
        """How many documents the known rows at these places are; its rows come together."""
        if self.known.chunks is None:
            return len(places)
        # A document of n rows counts as n times one n-th.
        return round(float((1.0 / self.known.chunks[places]).sum()))

    @property
    def unchanged(self) -> int:
        """Known documents that the corpus still has as they are."""
        kept = self._seen & ~among(self.known.keys, self.losers)
        return self._documents_at(np.flatnonzero(kept)) - self.kept_unseen

    def written(self) -> np.ndarray:
        """The keys of all rows written in this run, as they came."""
        return np.concatenate([np.empty(0, _KEY), *self._fresh, *self._refreshed])

    def expected(self) -> np.ndarray:
        """The keys that the finished table must hold: sorted, each once."""
        if self._expected is None:  # sorts every key, and the end of a run asks many times
            keys = distinct(np.concatenate([self.known.keys[self._seen], self.written()]))
            if len(self._broken):  # a document without one of its chunks must go whole
                keys = keys[~among(text_parts(keys), self._broken)]
            self._expected = keys[~among(keys, self.losers)] if len(self.losers) else keys
        return self._expected

    def documents(self) -> int:
        """Documents that the finished table must hold."""
        keys = self.expected()
        return int(first_rows(keys).sum()) if self.chunked else len(keys)

    def doubled_documents(self) -> np.ndarray:
        """The document parts (S7) of more than one text or kept column: ids that may be doubled."""
        keys = self.expected()
        docs = document_parts(keys[first_rows(keys)] if self.chunked else keys)
        return distinct(docs[1:][docs[1:] == docs[:-1]])

    def strike(self, losing_keys: list[bytes]) -> None:
        """Strike documents that lost their id to another off the books; a key for each such row."""
        losing = np.array(losing_keys, _KEY)
        named = distinct(losing)
        keys = self.expected()
        document = np.cumsum(first_rows(keys)) if self.chunked else np.arange(len(keys))
        of_losers = np.isin(document, document[among(keys, named)])
        self.losers, self._expected = keys[of_losers], None
        self.counts.rejected += len(losing)
        # A losing row that came several times was counted as a repeat of itself.
        self.counts.repeated -= len(losing) - len(named)

    def keep_unseen(self) -> int:
        """Keep the known documents that the corpus didn't show; replaced texts go all the same.

        Returns:
            How many documents are kept so.
        """
        unseen = ~among(document_parts(self.known.keys), document_parts(self.expected()))
        kept = self._documents_at(np.flatnonzero(unseen))
        self._seen |= unseen
        self.kept_unseen, self._expected = kept, None
        return kept

    @property
    def repeated(self) -> int:
        """Rows of the corpus that are the same in all as another one."""
        documents = self._documents_of([*self._fresh, *self._refreshed])
        return self.counts.repeated + len(documents) - len(distinct(documents))

    def embedded_and_refreshed(self) -> tuple[int, int]:
        """Documents of this run that stay: embedded ones, and ones that kept their vectors."""
        keep = self.expected()
        fresh, refreshed = (
            among(distinct(self._documents_of(keys)), keep).sum()
            for keys in (self._fresh, self._refreshed)
        )
        return int(fresh), int(refreshed)

    def _documents_of(self, written: list[np.ndarray]) -> np.ndarray:
        """The documents' own keys among those of written rows, as often as they were written."""
        keys = np.concatenate([np.empty(0, _KEY), *written])
        if not self.chunked:
            return keys
        keys = keys[~among(text_parts(keys), self._broken)]
        there = distinct(keys)
        own: np.ndarray = keys[among(keys, there[first_rows(there)])]
        return own

    def one_commit_is_enough(self) -> bool:
        """Whether every written row stays, so that only rows known before may have to go."""
        written = self.written()
        fine = not len(self.losers) and not (self.chunked and len(self._broken))
        return fine and len(distinct(written)) == len(written)

    def vanished_documents(self) -> tuple[int, int]:
        """Documents that were known and are in the corpus no more, and all that were known."""
        before, now = (
            distinct(document_parts(keys)) for keys in (self.known.keys, self.expected())
        )
        return int((~among(before, now)).sum()), len(before)

    def gone(self) -> int:
        """Known documents that the finished table doesn't hold as they were."""
        return self._documents_at(np.flatnonzero(~among(self.known.keys, self.expected())))

    def doomed(self, there: KnownKeys) -> np.ndarray:
        """The addresses of rows in a version that must go: stale ones and repeats, uint64."""
        keep = among(there.keys, self.expected())
        if there is self.known:
            # What this run wrote is not among them; the same key here is a rest of a killed run.
            keep &= self._seen
        keep[1:] &= there.keys[1:] != there.keys[:-1]
        out: np.ndarray = there.addresses[~keep]
        return out


MOST_SAMPLES = 512


@dataclass
class SampleBook:
    """Rows that the encoders did a second time in float32, for the gate."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, samples: list[dict[str, Any]]) -> None:
        """Enter a receipt's; `receipts.SAMPLE`."""
        self.rows += samples[: MOST_SAMPLES - len(self.rows)]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Row keys, `S16` [rows], and vectors, float32 [rows, dim]."""
        keys = np.array([row["row_key"] for row in self.rows], _KEY)
        vectors = [np.asarray(row["vector"], np.float32) for row in self.rows]
        return keys, np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def document_parts(keys: np.ndarray) -> np.ndarray:
    """The part of each key that says which document it is, `S7`, in the order of the keys."""
    return _parts(keys, DOC_BYTES)


def text_parts(keys: np.ndarray) -> np.ndarray:
    """The part of each key that says which document with which text it is, `S12`."""
    return _parts(keys, DOC_BYTES + TEXT_BYTES)


def first_rows(keys: np.ndarray) -> np.ndarray:
    """Which of these sorted keys don't follow on the one before: each document's first, bool."""
    if not len(keys):
        return np.empty(0, bool)
    return np.concatenate([[True], keys[1:] != chunk_keys(keys[:-1], np.ones(len(keys) - 1))])


def _parts(keys: np.ndarray, count: int) -> np.ndarray:
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)
    return np.ascontiguousarray(raw[:, :count]).view(f"S{count}").reshape(-1)
