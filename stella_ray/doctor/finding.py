"""What a check says."""

from __future__ import annotations

from typing import Literal

from stella_ray.storage_faults import without_secrets

Verdict = Literal["ok", "note", "bad"]
Finding = tuple[Verdict, str]
"""note: slower or less than it could be; bad: a job would fail."""

SECONDS = 8.0
"""Deadline of a check; all run at once, so that the whole answer comes within ten."""


def brief(error: BaseException) -> str:
    """An exception as a part of a line."""
    told = str(getattr(error, "reason", None) or error)
    return without_secrets(" ".join(told.split())[:150]) or type(error).__name__
