"""The books of a run: what the receipts add up to, and which rows the last commit must delete."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from stella_ray.rows import DOC_BYTES, KEY_BYTES
from stella_ray.table.keys import KnownKeys

_KEY = f"S{KEY_BYTES}"


@dataclass
class Counts:
    """Sums over the receipts."""

    rows_read: int = 0
    repeated: int = 0
    rejected: int = 0
    truncated: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    shard_bytes: float = 0.0
    read_seconds: float = 0.0
    encode_seconds: float = 0.0
    write_seconds: float = 0.0


@dataclass
class Ledger:
    """Collects receipts; about 16 bytes a written row and one a known row.

    Attributes:
        known: the keys that the run began with.
        counts: sums so far.
        pending: fragments that are written but not committed.
        pending_rows: their rows.
    """

    known: KnownKeys
    counts: Counts = field(default_factory=Counts)
    pending: list[str] = field(default_factory=list)
    pending_rows: int = 0
    losers: np.ndarray = field(default_factory=lambda: np.empty(0, _KEY))

    def __post_init__(self) -> None:
        self._seen = np.zeros(len(self.known.keys), bool)
        self._fresh: list[np.ndarray] = []
        self._refreshed: list[np.ndarray] = []
        self._expected: np.ndarray | None = None

    def add(self, receipt: pa.Table) -> None:
        """Enter the receipts of written blocks."""
        self._expected = None
        for row in receipt.to_pylist():
            counts = self.counts
            counts.rows_read += row["rows_read"]
            counts.repeated += row["repeated_rows"]
            counts.rejected += len(row["rejects"])
            counts.truncated += row["truncated"]
            counts.tokens += row["tokens"]
            counts.padded_tokens += row["padded_tokens"]
            counts.shard_bytes += row["shard_bytes"]
            counts.read_seconds += row["read_seconds"]
            counts.encode_seconds += row["encode_seconds"]
            counts.write_seconds += row["write_seconds"]
            seen = np.frombuffer(row["seen"], np.int64)
            distinct = np.unique(seen)
            counts.repeated += len(seen) - int(np.count_nonzero(~self._seen[distinct]))
            self._seen[distinct] = True
            fresh, refreshed = (
                np.frombuffer(row[k], _KEY) for k in ("fresh_keys", "refreshed_keys")
            )
            self._fresh.append(fresh)
            self._refreshed.append(refreshed)
            self.pending += row["fragments"]
            self.pending_rows += len(fresh) + len(refreshed)

    def committed(self) -> None:
        """Note that what was pending is in the table."""
        self.pending, self.pending_rows = [], 0

    @property
    def unchanged(self) -> int:
        """Known rows that the corpus still has as they are."""
        return len(np.setdiff1d(self.known.keys[self._seen], self.losers, assume_unique=True))

    def written(self) -> np.ndarray:
        """The keys of all rows written in this run, as they came."""
        return np.concatenate([np.empty(0, _KEY), *self._fresh, *self._refreshed])

    def expected(self) -> np.ndarray:
        """The keys that the finished table must hold: sorted, each once."""
        if self._expected is None:  # sorts every key, and the end of a run asks many times
            keys = np.unique(np.concatenate([self.known.keys[self._seen], self.written()]))
            self._expected = np.setdiff1d(keys, self.losers, assume_unique=True)
        return self._expected

    def doubled_documents(self) -> np.ndarray:
        """The document parts (S7) of more than one key: ids that may stand for several texts."""
        docs = document_parts(self.expected())
        return np.unique(docs[1:][docs[1:] == docs[:-1]])

    def strike(self, losing_keys: list[bytes]) -> None:
        """Strike rows that lost their id to another off the books; one key for each such row."""
        self._expected = None
        self.losers = np.unique(np.array(losing_keys, _KEY))
        self.counts.rejected += len(losing_keys)
        # A losing row that came several times was counted as a repeat of itself.
        self.counts.repeated -= len(losing_keys) - len(self.losers)

    @property
    def repeated(self) -> int:
        """Rows that are the same in all as another one."""
        written = self.written()
        return self.counts.repeated + len(written) - len(np.unique(written))

    def embedded_and_refreshed(self) -> tuple[int, int]:
        """Distinct rows of this run that stay: embedded ones, and ones that kept their vector."""
        keep = self.expected()
        fresh = np.unique(np.concatenate([np.empty(0, _KEY), *self._fresh]))
        refreshed = np.unique(np.concatenate([np.empty(0, _KEY), *self._refreshed]))
        return int(np.isin(fresh, keep).sum()), int(np.isin(refreshed, keep).sum())

    def one_commit_is_enough(self) -> bool:
        """Whether every written row stays, so that only rows known before may have to go."""
        written = self.written()
        return not len(self.losers) and len(np.unique(written)) == len(written)

    def vanished_documents(self) -> tuple[int, int]:
        """Documents that were known and are in the corpus no more, and all that were known."""
        before = np.unique(document_parts(self.known.keys))
        now = np.unique(document_parts(self.expected()))
        return len(np.setdiff1d(before, now, assume_unique=True)), len(before)

    def doomed(self, there: KnownKeys) -> np.ndarray:
        """The addresses of rows in a version that must go: stale ones and repeats, uint64."""
        keep = np.isin(there.keys, self.expected())
        keep[1:] &= there.keys[1:] != there.keys[:-1]
        return there.addresses[~keep]


def document_parts(keys: np.ndarray) -> np.ndarray:
    """The part of each key that says which document it is, `S7`, in the order of the keys."""
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)
    return np.ascontiguousarray(raw[:, :DOC_BYTES]).view(f"S{DOC_BYTES}").reshape(-1)
