"""The table that a run goes on from: a new one, the newest version, a rebuild, or what is live."""

from __future__ import annotations

import json
import logging
from typing import Any

import lance
import pyarrow as pa

from stella_ray.errors import ModelMismatch, TableError
from stella_ray.storage import StorageSettings
from stella_ray.table.publish import LIVE, suspect
from stella_ray.table.vectors import ENCODER, VectorTable

log = logging.getLogger(__name__)

REBUILT_FROM = b"stella_ray.rebuilt_from"
"""Schema metadata: the newest tagged version when a rebuild began; while it still is the newest,
that rebuild was never published, and the next one goes on with it."""

LONG = b"stella_ray.long"
"""Schema metadata: how long documents became rows, JSON; absent where they were cut."""


def open_for_run(
    uri: str,
    there: VectorTable | None,
    schema: pa.Schema,
    encoder: dict[str, Any],
    *,
    rebuild: bool,
    storage: StorageSettings = StorageSettings(),
) -> VectorTable:
    """Create the table, go on with the one that is there, or start a rebuild of it.

    Where the newest version is another encoder's but the live one is this run's (a rebuild that was
    given up, or rolled back), the run goes on from the live one.

    Raises:
        ModelMismatch: the table is another encoder's, and no rebuild was asked for.
        TableError: it has other columns, likewise.
    """
    if there is None:
        return VectorTable.create(uri, schema, encoder, storage)
    tags = there.tagged()
    never_filled = not tags and there.dataset.count_rows() == 0
    if rebuild or never_filled:
        there.encoder()  # refuses a table that isn't ours
        return start_rebuild(there, schema, encoder)
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
            log.warning(
                "the newest version, %d, is a rebuild that isn't live; this run goes on from the"
                " live version %d",
                there.version,
                tags[LIVE],
            )
            return there.restore(tags[LIVE])
        raise
    if (wrong := suspect(tags)) is not None:
        log.warning(
            "version %d has vectors that the gate found to be wrong; this run goes on from %s",
            wrong,
            f"the live version {tags[LIVE]}" if LIVE in tags else "an empty table",
        )
        if LIVE in tags:
            return there.restore(tags[LIVE])
        empty = lance.LanceOperation.Overwrite(there.dataset.schema, [])
        return there.make_version(empty, "starting over")
    return there


def start_rebuild(table: VectorTable, schema: pa.Schema, encoder: dict[str, Any]) -> VectorTable:
    """Start over in a new, empty version, or go on with a rebuild that died; no tag moves."""
    # `live` alone isn't enough: a rollback points it to where it was before the rebuild.
    newest = str(max(table.tagged().values(), default=0)).encode()
    now = table.dataset.schema
    same = table.encoder().get("digest") == encoder["digest"] and _types(now) == _types(schema)
    same = same and long_documents(now) == long_documents(schema)
    if same and (now.metadata or {}).get(REBUILT_FROM) == newest:
        return table
    own = schema.metadata or {}
    metadata = {
        **own,
        ENCODER: json.dumps(encoder, ensure_ascii=False).encode(),
        REBUILT_FROM: newest,
    }
    return table.make_version(
        lance.LanceOperation.Overwrite(schema.with_metadata(metadata), []),
        "starting the rebuild",
    )


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
