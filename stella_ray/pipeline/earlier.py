"""The reports of earlier runs of a table."""

from __future__ import annotations

import json
from typing import Any

from stella_ray.storage import StorageSettings, filesystem
from stella_ray.table.versions import runs_folder

LOOK_BACK = 100
"""Runs to look at: among a table's lie those of other tables, and dead ones without a report."""


def earlier_reports(
    uri: str, most: int, storage: StorageSettings = StorageSettings()
) -> list[dict[str, Any]]:
    """The newest runs' reports of this table, the newest first; one that can't be read is left out.

    Args:
        uri: the table's.
        most: reports.
        storage: where it lies.
    """
    store, root = filesystem(runs_folder(uri), storage)
    if not store.exists(root):
        return []
    folders = sorted(path.rstrip("/") for path in store.ls(root, detail=False))
    places = [f"{folder}/report.json" for folder in folders[-LOOK_BACK:]]
    texts: dict[str, bytes] = store.cat(places, on_error="omit") if places else {}
    found = [_report(texts[place]) for place in sorted(texts, reverse=True)]
    return [report for report in found if report.get("table") == uri][:most]


def _report(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
