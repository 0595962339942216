"""Nights on which no shard changed: what the last published run had read, by the store's stamps.

Beside the table lies one small file, NAME.seen.json: a digest over every shard's path, size and
stamp (the ETag on S3; the times and the inode on a disk) and over all settings that rows depend on,
with the version that came of it. Where the next run's digest is the same and that version is still
the newest and live, there is nothing to read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from stella_ray.pipeline.report import RunReport
from stella_ray.pipeline.shards import Shard
from stella_ray.storage import read_json, write_json
from stella_ray.table.publish import LIVE
from stella_ray.table.vectors import VectorTable

log = logging.getLogger(__name__)

COUNTS = ("rows_read", "repeated", "table_documents", "table_rows", "version")
"""What a run that reads nothing reports as the last one did."""


def digest_of(shards: Sequence[Shard], how: Mapping[str, Any]) -> str | None:
    """A digest of what would be read and how; None where shards can't be told from changed ones.

    Args:
        shards: the listing, ordered by path.
        how: everything that rows depend on besides, as JSON takes it.
    """
    if any(shard.stamp is None for shard in shards):
        return None
    total = hashlib.sha256(json.dumps(how, sort_keys=True, default=str).encode())
    for shard in shards:
        total.update(json.dumps([shard.path, shard.bytes, shard.stamp]).encode())
    return total.hexdigest()


def remember(table: VectorTable, digest: str | None, report: RunReport) -> None:
    """Note what was read for the version that is live now; nothing if not all of it got in.

    A note that can't be written costs the next run its short way, and no more.
    """
    whole = report.outcome == "published" and not report.rejected and not report.bad_shards
    if digest is None or not whole or report.kept_unseen:
        return
    counts = {name: getattr(report, name) for name in COUNTS}
    try:
        write_json(_place(table), {"digest": digest, **counts}, table.storage)
    except Exception as error:
        log.warning("%s could not be written (%s)", _place(table), " ".join(str(error).split()))


def nothing_new(table: VectorTable, digest: str | None, report: RunReport) -> bool:
    """Whether the table's live version came of the very same shards; fills the report if so.

    Args:
        table: the newest version.
        digest: of this run's listing.
        report: takes over the counts.
    """
    if digest is None:
        return False
    try:
        noted = read_json(_place(table), table.storage)
    except ValueError:
        return False
    if not isinstance(noted, dict) or noted.get("digest") != digest:
        return False
    live = table.tagged().get(LIVE)
    if not noted.get("version") == table.version == live:
        return False
    for name in COUNTS:
        setattr(report, name, noted[name])
    report.unchanged = report.rows_read - report.repeated
    report.live_before, report.outcome = live, "published"
    return True


def _place(table: VectorTable) -> str:
    return f"{table.uri.removesuffix('.lance')}.seen.json"
