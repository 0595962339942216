"""The versions of a table, for people; and what must not pile up, run by run."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stella_ray.storage import StorageSettings, filesystem, is_s3, read_json
from stella_ray.table.fragments import lance_errors
from stella_ray.table.gate import GateCheck
from stella_ray.table.publish import RUN, SUSPECT, suspect
from stella_ray.table.vectors import VectorTable, commit_message

REPORTS_KEPT = 100
"""Reports of a table's runs that stay: a quarter of a year of nights."""


@dataclass(frozen=True)
class VersionStatus:
    """One version of a table.

    Attributes:
        run: whose commits it ends with; None where nothing says so any more.
        data_bytes: of its data files, most of which it shares with its neighbours.
        gate: what the publishing gate found, None where it didn't come so far.
    """

    version: int
    written: datetime
    rows: int
    data_bytes: int
    run: str | None
    tags: list[str]
    gate: list[GateCheck] | None


@dataclass(frozen=True)
class Cleaned:
    """What a cleaning removed."""

    versions: int
    bytes: int


def status(uri: str, storage: StorageSettings = StorageSettings()) -> list[VersionStatus]:
    """Every version that is still there, newest first.

    Raises:
        TableError: no such table.
    """
    table = VectorTable.open(uri, storage=storage)
    by_version: dict[int, list[str]] = {}
    for name, version in table.tagged().items():
        by_version.setdefault(version, []).append(name)
    reports: dict[str, dict[str, Any]] = {}
    found: list[VersionStatus] = []
    with lance_errors(uri, "listing the versions", storage):
        versions = table.dataset.versions()
    run: str | None = None
    last = 0
    for item in versions:
        number, facts = int(item["version"]), item["metadata"]
        tags = sorted(by_version.get(number, []))
        # Compaction and indexing leave no word of their own: they end what the run before began.
        run = _committed_by(table, number) or _run_of(tags) or (run if last == number - 1 else None)
        last = number
        if run is not None and run not in reports:
            reports[run] = read_json(f"{runs_folder(uri)}/{run}/report.json", storage) or {}
        found.append(
            VersionStatus(
                version=number,
                written=item["timestamp"],
                rows=int(facts["total_rows"]),
                data_bytes=int(facts["total_files_size"]),
                run=run,
                tags=tags,
                gate=_gate(reports.get(run or "", {}), uri, number),
            )
        )
    return found[::-1]


def stored_bytes(table: VectorTable) -> int:
    """Bytes of all files of all versions, and of what dead runs left behind."""
    with lance_errors(table.uri, "listing the files", table.storage):
        return sum(
            size for batch in table.dataset.all_files() for size in batch["size_bytes"].to_pylist()
        )


def clean(table: VectorTable, keep: int) -> Cleaned:
    """Remove all versions but the tagged ones and the newest, and whatever no version refers to.

    Call it while holding the table's lock only: what a run is writing is not yet referred to.

    Args:
        table: any version of it.
        keep: published versions whose runs keep their tags. Others lose them, unless `live`,
            `live-previous` or a person's own tag holds their version.
    """
    tags = table.tagged()
    # A suspect version is kept for inspection until a better one is live.
    past = {} if suspect(tags) else {n: v for n, v in tags.items() if n.startswith(SUSPECT)}
    held = {v for name, v in tags.items() if not name.startswith(RUN) and name not in past}
    published = sorted({version for name, version in tags.items() if name.startswith(RUN)})
    held |= set(published[max(0, len(published) - keep) :])
    with lance_errors(table.uri, "removing old versions", table.storage):
        dataset = VectorTable.open(table.uri, storage=table.storage).dataset
        for name, version in tags.items():
            if version not in held or name in past:
                dataset.tags.delete(name)
        # By count, not by age: clocks differ.
        gone = dataset.cleanup_old_versions(
            retain_versions=1, delete_unverified=True, error_if_tagged_old_versions=False
        )
    if is_s3(table.uri):
        _abort_uploads(table)
    return Cleaned(gone.old_versions, gone.bytes_removed)


def clean_runs(table: VectorTable, keep: int = REPORTS_KEPT) -> int:
    """Remove the folders of this table's old runs; those of tagged versions stay.

    Args:
        table: its runs lie beside it, among those of other tables of the same folder.
        keep: the newest reports that stay.

    Returns:
        The folders removed.
    """
    store, root = filesystem(runs_folder(table.uri), table.storage)
    if not store.exists(root):
        return 0
    folders = sorted(path.rstrip("/") for path in store.ls(root, detail=False))
    if len(folders) <= keep:
        return 0
    texts = store.cat([f"{folder}/report.json" for folder in folders], on_error="omit")
    tables = {path.rpartition("/")[0]: _table_of(text) for path, text in texts.items()}
    own = [folder for folder in folders if tables.get(folder) == table.uri]
    if len(own) <= keep:
        return 0
    oldest = own[len(own) - keep]
    tagged = {f"{root}/{name.removeprefix(RUN)}" for name in table.tagged()}
    # Without a report: a run that was killed, of whatever table. Names begin with the time.
    doomed = [
        folder
        for folder in folders
        if folder < oldest and folder not in tagged and tables.get(folder, table.uri) == table.uri
    ]
    for folder in doomed:
        store.rm(folder, recursive=True)
    return len(doomed)


def runs_folder(uri: str) -> str:
    """Where the reports of a table's runs lie."""
    return f"{uri.rpartition('/')[0]}/runs"


def _committed_by(table: VectorTable, version: int) -> str | None:
    try:
        return str(json.loads(commit_message(table.dataset, version))["run"]) or None
    except (ValueError, KeyError, TypeError):
        return None


def _run_of(tags: list[str]) -> str | None:
    return next((name.removeprefix(RUN) for name in tags if name.startswith(RUN)), None)


def _gate(report: dict[str, Any], uri: str, version: int) -> list[GateCheck] | None:
    if report.get("version") != version or report.get("table") != uri:
        return None
    checks = report.get("gate")
    return [GateCheck(**check) for check in checks] if checks else None


def _table_of(report: bytes) -> str | None:
    try:
        return str(json.loads(report)["table"])
    except (ValueError, KeyError, TypeError):
        return None


def _abort_uploads(table: VectorTable) -> None:
    """End the uploads that dead workers began: S3 keeps, and charges for, parts no one sees."""
    store, path = filesystem(table.uri, table.storage)
    bucket, _, prefix = path.partition("/")
    with contextlib.suppress(OSError):  # not every key may; a bucket's lifecycle rule does the same
        found = store.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        for one in found.get("Uploads", []):  # a thousand at most; the next cleaning goes on
            where = {"Bucket": bucket, "Key": one["Key"], "UploadId": one["UploadId"]}
            store.call_s3("abort_multipart_upload", **where)
