"""The vector table: one Lance dataset, one encoder; keys out, fragments in, one committer.

Workers write fragments, which nobody sees; the driver alone commits them. Every commit makes a
version; readers read the one under the tag `live` (publish.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

from stella_ray.errors import ModelMismatch, TableError
from stella_ray.rows import KEY_BYTES, key_array
from stella_ray.table.fragments import lance_errors, reason
from stella_ray.table.keys import KnownKeys

ENCODER = b"stella_ray.encoder"
"""Schema metadata: the fingerprint and how to open the encoder for searching, JSON."""

REBUILT_FROM = b"stella_ray.rebuilt_from"
"""Schema metadata: the newest tagged version when a rebuild began; while it still is the newest,
that rebuild was never published, and the next one goes on with it."""

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

    def __init__(self, uri: str, dataset: lance.LanceDataset) -> None:
        self.uri = uri
        self.dataset = dataset

    @classmethod
    def open(cls, uri: str, version: int | str | None = None) -> VectorTable:
        """Open the newest version, a numbered one, or the one under a tag.

        Raises:
            TableError: there is no such table or version.
        """
        table = cls.open_if_there(uri)
        if table is None:
            raise TableError(f"{uri}: no such table; write one with jobs/embed.py --table")
        if version is None:
            return table
        try:
            return cls(uri, table.dataset.checkout_version(version))
        except (ValueError, OSError, RuntimeError):
            raise TableError(
                f"{uri}: no version {version!r}; see jobs/publish.py status --table {uri}"
            ) from None

    @classmethod
    def open_if_there(cls, uri: str) -> VectorTable | None:
        """Open the newest version, or None where no table was written yet.

        Raises:
            TableError: something else is in its place.
        """
        taken = TableError(f"{uri}: exists and is not a Lance table; give another --table")
        if Path(uri).is_file():  # Lance would try for seconds
            raise taken
        try:
            return cls(uri, lance.dataset(uri))
        except (ValueError, OSError, RuntimeError) as error:
            if "was not found" not in str(error):
                raise TableError(f"{uri}: not a readable Lance table ({reason(error)})") from None
            if _holds_files(uri):
                raise taken from None
            return None

    @classmethod
    def create(cls, uri: str, schema: pa.Schema, encoder: dict[str, Any]) -> VectorTable:
        """Make an empty table of one encoder."""
        schema = schema.with_metadata({ENCODER: json.dumps(encoder, ensure_ascii=False).encode()})
        with lance_errors(uri, "creating the table"):
            if "://" not in uri:
                Path(uri).parent.mkdir(parents=True, exist_ok=True)
            return cls(
                uri, lance.write_dataset(schema.empty_table(), uri, schema=schema, mode="create")
            )

    def rebuild(self, schema: pa.Schema, encoder: dict[str, Any]) -> VectorTable:
        """Start over in a new, empty version, or go on with a rebuild that died; no tag moves."""
        # `live` alone isn't enough: a rollback points it to where it was before the rebuild.
        newest = str(max(self.tagged().values(), default=0)).encode()
        now = self.dataset.schema
        same = self.encoder().get("digest") == encoder["digest"] and _types(now) == _types(schema)
        if same and (now.metadata or {}).get(REBUILT_FROM) == newest:
            return self
        metadata = {ENCODER: json.dumps(encoder, ensure_ascii=False).encode(), REBUILT_FROM: newest}
        return self._commit(
            lance.LanceOperation.Overwrite(schema.with_metadata(metadata), []),
            "starting the rebuild",
        )

    def accept(self, schema: pa.Schema, encoder: dict[str, Any]) -> None:
        """Check that rows of this schema and encoder belong here.

        Raises:
            ModelMismatch: the table is another encoder's.
            TableError: the table has other columns.
        """
        own = self.encoder()
        if own.get("digest") != encoder["digest"]:
            raise ModelMismatch(
                f"{self.uri} holds vectors of {own.get('name')} ({own.get('digest')}), this run's"
                f" encoder is {encoder['name']} ({encoder['digest']}); they differ in"
                f" {', '.join(differing_parts(own, encoder))}. Use the table's encoder, another"
                " table, or --rebuild to embed everything anew"
            )
        have, want = _types(self.dataset.schema), _types(schema)
        if have != want:
            raise TableError(
                f"{self.uri} has the columns {_columns(have, want)}, this run would write"
                f" {_columns(want, have)}; use the same --keep_columns, --store_text and"
                " --vector_type, or --rebuild"
            )

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
        with lance_errors(self.uri, "reading the tags"):
            return {name: int(tag["version"]) for name, tag in self.dataset.tags.list().items()}

    def known(self) -> KnownKeys:
        """Read every row's key and address, 24 bytes a row."""
        keys, addresses = [], []
        with lance_errors(self.uri, "reading the keys"):
            scan = self.dataset.scanner(columns=["row_key"], with_row_address=True)
            for batch in scan.to_batches():
                keys.append(key_array(batch).copy())
                addresses.append(batch.column("_rowaddr").to_numpy())
        all_keys = np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *keys])
        order = np.argsort(all_keys, kind="stable")
        all_addresses = np.concatenate([np.empty(0, np.uint64), *addresses])
        return KnownKeys(self.version, all_keys[order], all_addresses[order])

    def commit(self, fragments: Sequence[str], doomed: np.ndarray | None = None) -> VectorTable:
        """Add written fragments and delete the rows at `doomed` addresses, in one version.

        Args:
            fragments: what `write_rows` returned, JSON.
            doomed: row addresses, uint64 [rows].
        """
        added = [FragmentMetadata.from_json(text) for text in fragments]
        if doomed is None or not len(doomed):
            return (
                self._commit(lance.LanceOperation.Append(added), "adding rows") if added else self
            )
        updated, removed = [], []
        with lance_errors(self.uri, "marking stale rows"):
            for number in np.unique(doomed >> np.uint64(32)):
                inside = doomed[doomed >> np.uint64(32) == number]
                addresses = ", ".join(map(str, inside.tolist()))
                rest = self.dataset.get_fragment(int(number)).delete(f"_rowaddr IN ({addresses})")
                if rest is None:
                    removed.append(int(number))
                else:
                    updated.append(rest)
        return self._commit(
            lance.LanceOperation.Update(
                removed_fragment_ids=removed,
                updated_fragments=updated,
                new_fragments=added,
                fields_modified=[],
            ),
            "adding rows and deleting stale ones",
        )

    def _commit(self, operation: Any, doing: str) -> VectorTable:
        with lance_errors(self.uri, doing):
            self.dataset = lance.LanceDataset.commit(
                self.uri, operation, read_version=self.dataset.version
            )
        return self


def open_for_run(
    uri: str,
    there: VectorTable | None,
    schema: pa.Schema,
    encoder: dict[str, Any],
    *,
    rebuild: bool,
) -> VectorTable:
    """Create the table, go on with the one that is there, or start a rebuild of it.

    Raises:
        ModelMismatch: the table is another encoder's, and no rebuild was asked for.
        TableError: it has other columns, likewise.
    """
    if there is None:
        return VectorTable.create(uri, schema, encoder)
    never_filled = not there.tagged() and there.dataset.count_rows() == 0
    if rebuild or never_filled:
        there.encoder()  # refuses a table that isn't ours
        return there.rebuild(schema, encoder)
    there.accept(schema, encoder)
    return there


def differing_parts(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What sets two fingerprints apart; a name or the way to open it changes no vector."""
    parts = [part for part in other if part not in ("name", "digest", "open")]
    return [part for part in parts if one.get(part) != other[part]]


def _holds_files(uri: str) -> bool:
    """Whether a local folder holds more than what a killed creation leaves."""
    local = Path(uri)
    return local.is_dir() and not {path.name for path in local.iterdir()} <= _HALF_MADE


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in schema}


def _columns(these: dict[str, Any], those: dict[str, Any]) -> str:
    differing = [f"{name} ({kind})" for name, kind in these.items() if those.get(name) != kind]
    return ", ".join(differing) or "none beyond those"
