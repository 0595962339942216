"""The table that a run goes on from: a new one, the newest version, a rebuild, or what is live."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Literal

import lance
import numpy as np
import pyarrow as pa

from stella_ray.errors import ModelMismatch, TableError
from stella_ray.rows import KEY_BYTES
from stella_ray.storage import StorageSettings
from stella_ray.table.keys import KnownKeys
from stella_ray.table.publish import LIVE, suspect
from stella_ray.table.vectors import ENCODER, VectorTable

log = logging.getLogger(__name__)

REBUILT_FROM = b"stella_ray.rebuilt_from"
"""Schema metadata: the newest tagged version when a rebuild began; while it still is the newest,
that rebuild was never published, and the next one goes on with it."""

LONG = b"stella_ray.long"
"""Schema metadata: how long documents became rows, JSON; absent where they were cut."""


@dataclass(frozen=True)
class Start:
    """What a run goes on from.

    Attributes:
        kind: create: there is no table yet. rebuild: a new, empty version. go_on: the newest
            version, which holds all that dead runs committed. restore: an older one. empty: the
            newest one's rows can't be trusted, and there is no older one.
        version: of restore.
        why: of restore and empty, a line for the log.
    """

    kind: Literal["create", "rebuild", "go_on", "restore", "empty"]
    version: int | None = None
    why: str = ""


def where_to_start(
    uri: str,
    there: VectorTable | None,
    schema: pa.Schema,
    encoder: dict[str, Any],
    *,
    rebuild: bool,
    storage: StorageSettings = StorageSettings(),
) -> Start:
    """Say what a run goes on from; writes nothing.

    Where the newest version is another encoder's but the live one is this run's (a rebuild that was
    given up, or rolled back), the run goes on from the live one.

    Raises:
        ModelMismatch: the table is another encoder's, and no rebuild was asked for.
        TableError: it has other columns, likewise.
    """
    if there is None:
        return Start("create")
    tags = there.tagged()
    never_filled = not tags and there.dataset.count_rows() == 0
    if rebuild or never_filled:
        there.encoder()  # refuses a table that isn't ours
        return Start("go_on" if rebuild_goes_on(there, schema, encoder) else "rebuild")
    try:
        accept(there, schema, encoder)
    except (ModelMismatch, TableError):
        if LIVE not in tags or tags[LIVE] == there.version:
            raise
        try:
            accept(VectorTable.open(uri, LIVE, storage), schema, encoder)
        except (ModelMismatch, TableError):
            pass
        else:
            why = (
                f"the newest version, {there.version}, is a rebuild that isn't live; this run goes"
                f" on from the live version {tags[LIVE]}"
            )
            return Start("restore", tags[LIVE], why)
        raise
    if (wrong := suspect(tags)) is not None:
        words = f"version {wrong} has vectors that the gate found to be wrong; this run goes on"
        if LIVE in tags:
            return Start("restore", tags[LIVE], f"{words} from the live version {tags[LIVE]}")
        return Start("empty", why=f"{words} from an empty table")
    return Start("go_on")


def open_for_run(
    uri: str,
    there: VectorTable | None,
    schema: pa.Schema,
    encoder: dict[str, Any],
    *,
    rebuild: bool,
    storage: StorageSettings = StorageSettings(),
) -> VectorTable:
    """Create the table, go on with the one that is there, or start a rebuild: `where_to_start`."""
    start = where_to_start(uri, there, schema, encoder, rebuild=rebuild, storage=storage)
    if there is None:
        return VectorTable.create(uri, schema, encoder, storage)
    if start.why:
        log.warning("%s", start.why)
    if start.version is not None:
        return there.restore(start.version)
    if start.kind == "empty":
        empty = lance.LanceOperation.Overwrite(there.dataset.schema, [])
        return there.make_version(empty, "starting over")
    return there if start.kind == "go_on" else start_rebuild(there, schema, encoder)


def known_at_start(
    uri: str,
    there: VectorTable | None,
    start: Start,
    schema: pa.Schema,
    storage: StorageSettings = StorageSettings(),
) -> KnownKeys:
    """The keys that a run would begin with."""
    if there is not None and start.kind == "go_on":
        return there.known()
    if start.version is not None:
        return VectorTable.open(uri, start.version, storage).known()
    chunks = np.empty(0, np.int32) if "chunks" in schema.names else None
    return KnownKeys(0, np.empty(0, f"S{KEY_BYTES}"), np.empty(0, np.uint64), chunks)


def rebuild_goes_on(table: VectorTable, schema: pa.Schema, encoder: dict[str, Any]) -> bool:
    """Whether the newest version is this very rebuild, which died before it was published."""
    now = table.dataset.schema
    same = table.encoder().get("digest") == encoder["digest"] and _types(now) == _types(schema)
    same = same and long_documents(now) == long_documents(schema)
    return bool(same and (now.metadata or {}).get(REBUILT_FROM) == _newest_tagged(table))


def start_rebuild(table: VectorTable, schema: pa.Schema, encoder: dict[str, Any]) -> VectorTable:
    """Start over in a new, empty version; no tag moves."""
    own = schema.metadata or {}
    metadata = {
        **own,
        ENCODER: json.dumps(encoder, ensure_ascii=False).encode(),
        REBUILT_FROM: _newest_tagged(table),
    }
    return table.make_version(
        lance.LanceOperation.Overwrite(schema.with_metadata(metadata), []),
        "starting the rebuild",
    )


def _newest_tagged(table: VectorTable) -> bytes:
    """`live` alone isn't enough: a rollback points it to where it was before the rebuild."""
    return str(max(table.tagged().values(), default=0)).encode()


def accept(table: VectorTable, schema: pa.Schema, encoder: dict[str, Any]) -> None:
    """Check that rows of this schema and encoder belong here.

    Raises:
        ModelMismatch: the table is another encoder's.
        TableError: the table has other columns.
    """
    own = table.encoder()
    if own.get("digest") != encoder["digest"]:
        raise ModelMismatch(
            f"{table.uri} holds vectors of {own.get('name')} ({own.get('digest')}), this run's"
            f" encoder is {encoder['name']} ({encoder['digest']}); they differ in"
            f" {', '.join(differing_parts(own, encoder))}. Use the table's encoder, another"
            " table, or --rebuild to embed everything anew"
        )
    have, want = _types(table.dataset.schema), _types(schema)
    if have != want:
        raise TableError(
            f"{table.uri} has the columns {_columns(have, want)}, this run would write"
            f" {_columns(want, have)}; use the same --keep_columns, --store_text,"
            " --vector_type and --long, or --rebuild"
        )
    if (there := long_documents(table.dataset.schema)) != long_documents(schema):
        raise TableError(
            f"{table.uri}: its long documents were made rows by {there}, this run's would be by"
            f" {long_documents(schema)}; use the same --long and --chunk_overlap, or --rebuild"
        )


def differing_parts(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What sets two fingerprints apart; a name or the way to open it changes no vector."""
    parts = [part for part in other if part not in ("name", "digest", "open")]
    return [part for part in parts if one.get(part) != other[part]]


def long_documents(schema: pa.Schema) -> dict[str, Any]:
    """How documents beyond max_tokens become rows of a table with this schema."""
    raw = (schema.metadata or {}).get(LONG)
    value: dict[str, Any] = json.loads(raw) if raw else {"long": "truncate"}
    return value


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in schema}


def _columns(these: dict[str, Any], those: dict[str, Any]) -> str:
    differing = [f"{name} ({kind})" for name, kind in these.items() if those.get(name) != kind]
    return ", ".join(differing) or "none beyond those"
