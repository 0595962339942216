"""Rejected rows: the file that lists each, and a few words for each kind of reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import TracebackType
from typing import IO

from stella_ray.storage import StorageSettings, filesystem

KINDS = 40
"""Kinds of reasons that are counted apart; a corpus can't make more metrics than that."""

OTHER = "other reasons"


def kind_of(row: int, reason: str) -> str:
    """A reason without what is one row's own: numbers, names, quotes, what a library said.

    Args:
        row: -1 where a whole shard is rejected.
        reason: as the rejects file has it.
    """
    if row < 0 and reason.startswith("the shard is bad"):
        return "the shard is bad"
    kind = re.sub(r" holds .*", " of another type", reason, flags=re.DOTALL)
    kind = re.sub(r"\s*\(.*\)|(; kept|: ).*", "", kind, flags=re.DOTALL)
    return " ".join(re.sub(r"\d[\d,]*", "N", kind).split())[:80] or OTHER


class RejectsFile:
    """Rejects as JSON lines (shard, row, id, reason), opened with the first one.

    Attributes:
        count: lines written.
        kinds: how many of each kind of reason.
    """

    def __init__(self, uri: str, storage: StorageSettings = StorageSettings()) -> None:
        self.uri = uri
        self.storage = storage
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self._file: IO[str] | None = None

    def add(self, shard: str, row: int, doc_id: str | None, reason: str) -> None:
        """Write one; `row` counts from 0, -1 where the corpus knows no places."""
        if self._file is None:
            store, path = filesystem(self.uri, self.storage)
            store.makedirs(store._parent(path), exist_ok=True)
            self._file = store.open(path, "w", encoding="utf-8")
        line = {"shard": shard, "row": row, "id": doc_id, "reason": reason}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.count += 1
        kind = kind_of(row, reason)
        self.kinds[kind if kind in self.kinds or len(self.kinds) < KINDS else OTHER] += 1

    def __enter__(self) -> RejectsFile:
        """Nothing is opened yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Close it, so that all of it is there."""
        if self._file is not None:
            self._file.close()
