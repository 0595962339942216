"""The keys of a table: what need not be embedded again.

Without Lance, so that the tasks that only ask for keys don't load it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stella_ray.rows import KEY_BYTES


@dataclass(frozen=True)
class KnownKeys:
    """The keys of a table's newest version: what need not be embedded again.

    Attributes:
        version: the version they were read from.
        keys: sorted, `S16` [rows].
        addresses: where each row lies, uint64 [rows]; valid until a compaction.
    """

    version: int
    keys: np.ndarray
    addresses: np.ndarray

    def find(self, keys: np.ndarray, prefix_bytes: int = KEY_BYTES) -> np.ndarray:
        """Where each key, or one that starts with the same bytes, is; -1 if none, int64 [rows]."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        wanted = _starts(keys, prefix_bytes)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(_starts(self.keys[at], prefix_bytes) == wanted, at, -1)


def _starts(keys: np.ndarray, count: int) -> np.ndarray:
    """Each key's first `count` bytes, the rest zero: the smallest key that starts with them."""
    if count == KEY_BYTES:
        return keys
    raw = np.array(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)
    raw[:, count:] = 0
    return raw.view(f"S{KEY_BYTES}").reshape(-1)
