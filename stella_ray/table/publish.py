"""Which version readers see: the tags `live` and `live-previous`, and the check before a move."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from stella_ray.errors import IncompleteRun, TableError
from stella_ray.table.fragments import lance_errors
from stella_ray.table.vectors import VectorTable

LIVE, PREVIOUS = "live", "live-previous"


@dataclass(frozen=True)
class VersionStatus:
    """One version of a table, for people."""

    version: int
    written: datetime
    rows: int
    tags: list[str]


def verify(table: VectorTable, expected: np.ndarray) -> None:
    """Check that the table holds exactly the expected keys, each once.

    Args:
        table: the candidate version.
        expected: sorted keys without repeats, `S16` [rows].

    Raises:
        IncompleteRun: rows are missing, foreign or doubled; says how many.
    """
    found = table.known().keys
    if np.array_equal(found, expected):
        return
    distinct = np.unique(found)
    missing = len(np.setdiff1d(expected, distinct, assume_unique=True))
    foreign = len(np.setdiff1d(distinct, expected, assume_unique=True))
    raise IncompleteRun(
        f"{table.uri} version {table.version} is not what the corpus says:"
        f" {missing:,} rows missing, {foreign:,} foreign, {len(found) - len(distinct):,} doubled;"
        " it was not published"
    )


def publish(table: VectorTable) -> int | None:
    """Point `live` at the open version and `live-previous` at the one before.

    Returns:
        The version that was live before, None if there was none.
    """
    before = table.tagged().get(LIVE)
    if before != table.version:
        # In this order: a crash between the two leaves `live` where it was.
        if before is not None:
            _point(table, PREVIOUS, before)
        _point(table, LIVE, table.version)
    return before


def rollback(uri: str) -> tuple[int, int]:
    """Swap `live` and `live-previous`; a second rollback undoes the first.

    Returns:
        The version that is live now, and the one that was.

    Raises:
        TableError: there is nothing to go back to.
    """
    table = VectorTable.open(uri)
    tags = table.tagged()
    if LIVE not in tags or PREVIOUS not in tags or tags[LIVE] == tags[PREVIOUS]:
        raise TableError(
            f"{uri}: no earlier published version to go back to; tags: {tags or 'none'}"
        )
    # `live` first: it is what readers see, and the other only names a way back.
    _point(table, LIVE, tags[PREVIOUS])
    _point(table, PREVIOUS, tags[LIVE])
    return tags[PREVIOUS], tags[LIVE]


def status(uri: str) -> list[VersionStatus]:
    """Every version that is still there, newest first."""
    table = VectorTable.open(uri)
    by_version: dict[int, list[str]] = {}
    for name, version in table.tagged().items():
        by_version.setdefault(version, []).append(name)
    with lance_errors(uri, "listing the versions"):
        found = [
            VersionStatus(
                version=int(item["version"]),
                written=item["timestamp"],
                rows=int(item["metadata"]["total_rows"])
                if "total_rows" in item["metadata"]
                else table.dataset.checkout_version(item["version"]).count_rows(),
                tags=sorted(by_version.get(int(item["version"]), [])),
            )
            for item in table.dataset.versions()
        ]
    return found[::-1]


def _point(table: VectorTable, tag: str, version: int) -> None:
    with lance_errors(table.uri, f"moving the tag {tag}"):
        if tag in table.dataset.tags.list():
            table.dataset.tags.update(tag, version)
        else:
            table.dataset.tags.create(tag, version)
