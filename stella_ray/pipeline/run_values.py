"""Values out of a report, which may be of an older version or of a run that broke off."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]


def part(report: Report, name: str) -> Report:
    """A part of it; empty where there is none."""
    found = report.get(name)
    return found if isinstance(found, Mapping) else {}


def amount(report: Report, name: str) -> float:
    """A number of it; 0 where there is none."""
    found = report.get(name)
    return float(found) if isinstance(found, int | float) else 0.0


def count(report: Report, name: str) -> str:
    """A number of it for a person to read."""
    return f"{amount(report, name):,.0f}"


def when(report: Report) -> str:
    """When the run began, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(amount(report, "began")))
