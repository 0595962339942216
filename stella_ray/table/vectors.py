"""The vector table: one Lance dataset, one encoder; keys out, fragments in, one committer.

Workers write fragments, which nobody sees; the driver alone commits them. Every commit makes a
version; readers read the one under the tag `live` (publish.py). A commit carries the run's id, so
that one whose answer got lost is recognised instead of made again, which would double its rows.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

from stella_ray.errors import TableError
from stella_ray.rows import KEY_BYTES, key_array
from stella_ray.storage import StorageSettings, is_s3, lance_options
from stella_ray.storage_faults import explain
from stella_ray.table.fragments import dropped, lance_errors, reason
from stella_ray.table.keys import KnownKeys

ENCODER = b"stella_ray.encoder"
"""Schema metadata: the fingerprint and how to open the encoder for searching, JSON."""

MESSAGE = "__lance_commit_message"
"""Where Lance keeps a commit's message among a transaction's properties."""

log = logging.getLogger(__name__)

_HALF_MADE = frozenset({"_transactions", "_versions"})
"""What a creation that was killed leaves."""

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]+")
"""A table's name, by LanceDB's rule."""


def table_uri(name: str) -> str:
    """The dataset's place, DIR/NAME.lance: what `lancedb.connect(DIR)` calls NAME.

    Raises:
        TableError: not a name that LanceDB accepts.
    """
    folder, _, last = name.rstrip("/").rpartition("/")
    last = last.removesuffix(".lance")
    # s3://BUCKET alone has no name in it: its last part is the bucket.
    if not folder or folder.endswith(":/") or not _NAME.fullmatch(last):
        raise TableError(
            f"--table {name}: expected DIR/NAME, the name of letters, digits, '_', '-' and '.'"
        )
    return f"{folder}/{last}.lance"


class VectorTable:
    """A table that is open for the one run that writes to it."""

    def __init__(
        self, uri: str, dataset: lance.LanceDataset, storage: StorageSettings = StorageSettings()
    ) -> None:
        self.uri = uri
        self.dataset = dataset
        self.storage = storage
        self.run_id = ""
        """Whose commits these are; part of each commit's message."""

    @classmethod
    def open(
        cls,
        uri: str,
        version: int | str | None = None,
        storage: StorageSettings = StorageSettings(),
    ) -> VectorTable:
        """Open the newest version, a numbered one, or the one under a tag.

        Raises:
            TableError: there is no such table or version.
        """
        table = cls.open_if_there(uri, storage)
        if table is None:
            raise TableError(f"{uri}: no such table; write one with jobs/embed.py --table")
        if version is None:
            return table
        try:
            return cls(uri, table.dataset.checkout_version(version), storage)
        except (ValueError, OSError, RuntimeError):
            raise TableError(
                f"{uri}: no version {version!r}; see jobs/publish.py status --table {uri}"
            ) from None

    @classmethod
    def open_if_there(
        cls, uri: str, storage: StorageSettings = StorageSettings()
    ) -> VectorTable | None:
        """Open the newest version, or None where no table was written yet.

        Raises:
            TableError: something else is in its place.
        """
        taken = TableError(f"{uri}: exists and is not a Lance table; give another --table")
        if not is_s3(uri) and Path(uri).is_file():  # Lance would try for seconds
            raise taken
        try:
            return cls(
                uri, lance.dataset(uri, storage_options=lance_options(uri, storage)), storage
            )
        except (ValueError, OSError, RuntimeError) as error:
            if line := explain(error, uri, storage):
                raise TableError(f"{line} (opening the table)") from None
            if "was not found" not in str(error):
                raise TableError(f"{uri}: not a readable Lance table ({reason(error)})") from None
            if _holds_files(uri):
                raise taken from None
            return None

    @classmethod
    def create(
        cls,
        uri: str,
        schema: pa.Schema,
        encoder: dict[str, Any],
        storage: StorageSettings = StorageSettings(),
    ) -> VectorTable:
        """Make an empty table of one encoder; the schema's own metadata is kept."""
        metadata = {**(schema.metadata or {}), ENCODER: _json(encoder)}
        schema = schema.with_metadata(metadata)
        with lance_errors(uri, "creating the table", storage):
            if not is_s3(uri):
                Path(uri).parent.mkdir(parents=True, exist_ok=True)
            dataset = lance.write_dataset(
                schema.empty_table(),
                uri,
                schema=schema,
                mode="create",
                storage_options=lance_options(uri, storage),
            )
            return cls(uri, dataset, storage)

    @property
    def version(self) -> int:
        """The number of the version that is open."""
        return int(self.dataset.version)

    def encoder(self) -> dict[str, Any]:
        """The fingerprint of the encoder and how to open it for searching.

        Raises:
            TableError: not a table of this system.
        """
        raw = (self.dataset.schema.metadata or {}).get(ENCODER)
        if raw is None:
            raise TableError(
                f"{self.uri}: a Lance table that jobs/embed.py did not write; give another --table"
            )
        value: dict[str, Any] = json.loads(raw)
        return value

    def tagged(self) -> dict[str, int]:
        """Version numbers by tag."""
        with lance_errors(self.uri, "reading the tags", self.storage):
            return {name: int(tag["version"]) for name, tag in self.dataset.tags.list().items()}

    @property
    def chunked(self) -> bool:
        """Whether long documents have several rows."""
        return "chunks" in self.dataset.schema.names

    def known(self) -> KnownKeys:
        """Read every row's key and address, 24 bytes a row; 28 in a table of chunks."""
        names = ["row_key", *(["chunks"] if self.chunked else [])]
        rows = self.dataset.count_rows()
        keys, addresses = np.empty(rows, f"S{KEY_BYTES}"), np.empty(rows, np.uint64)
        chunks = np.empty(rows, np.int32) if self.chunked else None
        at = 0
        with lance_errors(self.uri, "reading the keys", self.storage):
            for batch in self.dataset.scanner(columns=names, with_row_address=True).to_batches():
                inside = slice(at, at + len(batch))
                keys[inside] = key_array(batch)
                addresses[inside] = batch.column("_rowaddr").to_numpy()
                if chunks is not None:
                    chunks[inside] = batch.column("chunks").to_numpy()
                at += len(batch)
        order = np.argsort(keys, kind="stable")
        return KnownKeys(
            self.version,
            keys[order],
            addresses[order],
            None if chunks is None else chunks[order],
        )

    def commit(self, fragments: Sequence[str], doomed: np.ndarray | None = None) -> VectorTable:
        """Add written fragments and delete the rows at `doomed` addresses, in one version.

        Args:
            fragments: what `write_rows` returned, JSON.
            doomed: row addresses, uint64 [rows].
        """
        added = [FragmentMetadata.from_json(text) for text in fragments]
        if doomed is None or not len(doomed):
            return (
                self.make_version(lance.LanceOperation.Append(added), "adding rows")
                if added
                else self
            )
        updated, removed = [], []
        with lance_errors(self.uri, "marking stale rows", self.storage):
            doomed = np.sort(doomed)
            numbers, starts = np.unique(doomed >> np.uint64(32), return_index=True)
            for number, inside in zip(numbers.tolist(), np.split(doomed, starts[1:]), strict=True):
                addresses = ", ".join(map(str, inside.tolist()))
                fragment = self.dataset.get_fragment(number)
                rest = fragment.delete(f"_rowaddr IN ({addresses})")
                if rest is None:
                    removed.append(number)
                else:
                    updated.append(rest)
        return self.make_version(
            lance.LanceOperation.Update(
                removed_fragment_ids=removed,
                updated_fragments=updated,
                new_fragments=added,
                fields_modified=[],
            ),
            "adding rows and deleting stale ones",
        )

    def restore(self, version: int) -> VectorTable:
        """Make what an earlier version held the newest again, as a version of its own."""
        return self.make_version(
            lance.LanceOperation.Restore(version), f"going back to version {version}"
        )

    def make_version(self, operation: Any, doing: str) -> VectorTable:
        """Make the next version; never twice, whatever becomes of the store's answers.

        Lance's own retries are off: a lost answer would look to it like another writer's commit,
        behind which it adds the same rows once more. Instead, the new versions are searched for
        this commit's message before it is tried again, from the same version as before, so that a
        request that arrives late meets the other's.
        """
        mark = secrets.token_hex(8)
        message = json.dumps({"run": self.run_id, "doing": doing, "mark": mark})
        options = lance_options(self.uri, self.storage)
        seen, until = self.dataset.version, time.monotonic() + self.storage.retry_seconds
        while True:
            try:
                with lance_errors(self.uri, doing, self.storage):
                    self.dataset = lance.LanceDataset.commit(
                        self.uri,
                        operation,
                        read_version=self.dataset.version,
                        storage_options=options,
                        max_retries=0,
                        commit_message=message,
                    )
                return self
            except TableError as error:
                newest = VectorTable.open(self.uri, storage=self.storage).dataset
                versions = range(newest.version, self.dataset.version, -1)
                if any(mark in commit_message(newest, version) for version in versions):
                    log.warning("%s; a look at the table shows that it was done", error)
                    self.dataset = newest
                    return self
                # Somebody else's commit, an index perhaps, got in between: asked again, Lance tells
                # whether ours can go on top of it.
                overtaken, seen = newest.version > seen, newest.version
                if time.monotonic() > until or not (overtaken or dropped(self.uri, error)):
                    raise
                time.sleep(0.5)


def commit_message(dataset: lance.LanceDataset, version: int) -> str:
    """The message of the commit that made a version; empty where it has none or is gone."""
    try:
        found = dataset.read_transaction(version)
    except (ValueError, OSError, RuntimeError, TypeError):
        return ""  # TypeError: of a compaction that moved an index (pylance 14)
    return str((found.transaction_properties or {}).get(MESSAGE, "")) if found else ""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _holds_files(uri: str) -> bool:
    """Whether a local folder holds more than what a killed creation leaves."""
    local = Path(uri)
    return local.is_dir() and not {path.name for path in local.iterdir()} <= _HALF_MADE
