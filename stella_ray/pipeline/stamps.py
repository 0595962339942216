"""How a listing tells a changed file from one that is as it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

SETTLED_SECONDS = 2.0
"""A file on a disk that is younger than this when it is listed could change again without a new
time: clocks of file systems tick coarsely."""


def stamp_of(info: Mapping[str, Any]) -> str | None:
    """What a store's listing says that differs once a file's content does; None if it says nothing.

    Args:
        info: of fsspec, from S3 or from a disk.
    """
    if info.get("ETag"):
        return str(info["ETag"])
    if "mtime" not in info or "ino" not in info:
        return None
    times = info["mtime"], info.get("created", 0.0)
    if max(times) > time.time() - SETTLED_SECONDS:
        return None
    return f"{info['ino']} {times[0]!r} {times[1]!r}"
