"""Shards of lines: JSON Lines and CSV, read as a stream."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
import pyarrow as pa

from stella_ray.errors import BadShard
from stella_ray.pipeline.cells import CorpusColumns, as_type, check_columns, not_utf8
from stella_ray.pipeline.reading import OpenShard
from stella_ray.streams import BOM, CsvText, lines, too_long, unpacked

T = TypeVar("T")

LONGEST_FIELD = 2**31 - 1
"""csv's own limit of 131,072 characters a field is below a long document."""

LINES_FOR_TYPES = 256
"""Lines looked at for the types of kept columns."""

_JSON_TYPES = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


@dataclass
class Lines:
    """The lines of a window, one entry a row: id, text and kept cells as read, or a reason."""

    rows: list[int] = field(default_factory=list)
    doc_ids: list[str | None] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    kept: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    bytes: int = 0

    def add(
        self, row: int, doc_id: Any, text: Any, kept: tuple[Any, ...], reason: str | None
    ) -> None:
        """Add a row; what isn't text becomes null with a reason."""
        checked_id, id_fault = _checked_id(doc_id)
        checked_text, text_fault = _checked_text(text)
        self.rows.append(row)
        self.doc_ids.append(checked_id)
        self.texts.append(checked_text)
        self.kept.append(kept)
        self.reasons.append(reason or text_fault or id_fault)

    def table(self, kept: Sequence[pa.Field]) -> pa.Table:
        """The window as a table: row, doc_id, text, kept columns, reason."""
        cells = {
            column.name: as_type([values[i] for values in self.kept], column, self.reasons)
            for i, column in enumerate(kept)
        }
        return pa.table(
            {
                "row": pa.array(self.rows, pa.int64()),
                "doc_id": pa.array(self.doc_ids, pa.string()),
                "text": pa.array(self.texts, pa.string()),
                **cells,
                "reason": pa.array(self.reasons, pa.string()),
            }
        )


def _checked_id(doc_id: Any) -> tuple[str | None, str | None]:
    if isinstance(doc_id, int) and not isinstance(doc_id, bool):
        return str(doc_id), None
    if doc_id is None or isinstance(doc_id, str):
        return _checked_text(doc_id, "id", errors="replace")
    found = _JSON_TYPES.get(type(doc_id), type(doc_id).__name__)
    return None, f"the id is {found}, expected text or an integer"


def _checked_text(
    text: Any, name: str = "text", errors: str | None = None
) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    if not isinstance(text, str):
        return (
            None,
            f"the {name} is {_JSON_TYPES.get(type(text), type(text).__name__)}, expected text",
        )
    if text.isascii():
        return text, None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text.encode(errors=errors).decode() if errors else None, not_utf8(name, error)
    return text, None


def read_jsonl(
    shard: OpenShard,
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    limits: tuple[int, int],
) -> Iterator[tuple[pa.Table, int]]:
    """Yield windows and the shard's bytes read so far; a row's number is its line's, from 0.

    Raises:
        BadShard: no line of the first window is an object, has a column, or has text where text
            is expected.
    """
    found, objects = Lines(), _Objects()
    first = True
    damage: list[Exception] = []
    for number, line in enumerate(
        _until_damaged(lines(unpacked(shard.file, shard.compression)), damage)
    ):
        line = line.removeprefix(BOM) if number == 0 else line
        if not line.strip() and not too_long(line):
            continue
        item, reason = _json_object(line)
        cells = tuple(item.get(column.name) for column in kept)
        found.add(number, item.get(columns.doc_id), item.get(columns.text), cells, reason)
        found.bytes += len(line)
        if first:
            objects.add(item, columns, reason)
        if len(found.rows) >= limits[0] or found.bytes >= limits[1]:
            if first:
                objects.check(shard.path, columns)
            yield found.table(kept), shard.position()
            found, first = Lines(), False
    if found.rows:
        if first:
            objects.check(shard.path, columns)
        yield found.table(kept), shard.position()
    for error in damage:
        raise error


def _until_damaged(items: Iterable[T], damage: list[Exception]) -> Iterator[T]:
    """The items before the first that can't be read: they count, whatever the window's size.

    Args:
        items: lines or rows of a shard.
        damage: gets what ended them early, to be raised behind them.
    """
    try:
        yield from items
    except Exception as error:
        damage.append(error)


def jsonl_types(shard: OpenShard, columns: CorpusColumns) -> dict[str, pa.DataType]:
    """The kept columns' Arrow types in a shard's first lines; text where they disagree."""
    values: dict[str, list[Any]] = {name: [] for name in columns.kept}
    for line in itertools.islice(lines(unpacked(shard.file, shard.compression)), LINES_FOR_TYPES):
        item, _ = _json_object(line.removeprefix(BOM))
        for name in columns.kept:
            values[name].append(item.get(name))
    types = {}
    for name, cells in values.items():
        try:
            types[name] = pa.array(cells).type
        except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
            types[name] = pa.string()
    return types


def _json_object(line: bytes) -> tuple[dict[str, Any], str | None]:
    if fault := too_long(line):
        return {}, fault
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as bad:
            return _what_is_readable(line), not_utf8("line", bad)
        return _what_is_readable(line), f"not a line of JSON ({error})"
    if not isinstance(item, dict):
        return {}, f"the line is {_JSON_TYPES.get(type(item), 'null')}, expected a JSON object"
    return item, None


def _what_is_readable(line: bytes) -> dict[str, Any]:
    """What the forgiving parser makes of a faulty line, so that the reject can name its id."""
    try:
        item = json.loads(line.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return {}
    return item if isinstance(item, dict) else {}


@dataclass
class _Objects:
    """What the first window's objects hold, to tell a wrong setting from a wrong row."""

    keys: dict[str, None] = field(default_factory=dict)
    types: dict[str, set[type]] = field(default_factory=dict)
    sound: int = 0
    fault: str = ""

    def add(self, item: dict[str, Any], columns: CorpusColumns, reason: str | None) -> None:
        if reason:
            self.fault = self.fault or reason
            return
        self.sound += 1
        self.keys.update(dict.fromkeys(item))
        for name in (columns.doc_id, columns.text):
            if item.get(name) is not None:
                self.types.setdefault(name, set()).add(type(item[name]))

    def check(self, path: str, columns: CorpusColumns) -> None:
        if not self.sound:
            raise BadShard(f"{path}: {self.fault}; expected one JSON object on each line")
        check_columns(path, columns.all, list(self.keys))
        for name, expected, wanted in (
            (columns.text, {str}, "text"),
            (columns.doc_id, {str, int}, "text or integers as ids"),
        ):
            types = self.types.get(name, set())
            if types and not types & expected:
                found = ", ".join(sorted(_JSON_TYPES.get(kind, kind.__name__) for kind in types))
                raise BadShard(
                    f"{path}: column {name} is {found}, expected {wanted};"
                    " convert it, or name another column"
                )


def read_csv(
    shard: OpenShard,
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    limits: tuple[int, int],
) -> Iterator[tuple[pa.Table, int]]:
    """Yield windows and the shard's bytes read so far; rows count from 0 behind the header.

    Quotes, commas and line ends in cells as RFC 4180 has them; UTF-8 with or without a mark.

    Raises:
        BadShard: a column is missing or doubled.
        csv.Error: the quotes don't match.
    """
    csv.field_size_limit(LONGEST_FIELD)
    # surrogateescape keeps bytes that aren't UTF-8, so that a row can be told from its neighbours.
    with io.TextIOWrapper(
        unpacked(shard.file, shard.compression),
        encoding="utf-8-sig",
        errors="surrogateescape",
        newline="",
    ) as text:
        bounded = CsvText(text)
        reader = csv.reader(bounded, strict=True)
        header = next(reader, [])
        check_columns(shard.path, columns.all, header)
        doc_at, text_at = header.index(columns.doc_id), header.index(columns.text)
        kept_at = [header.index(column.name) for column in kept]
        found, row, damage = Lines(), 0, list[Exception]()
        for cells in _until_damaged(reader, damage):
            bounded.row_characters = 0
            if not cells:
                continue  # an empty line is no row
            reason = None
            if len(cells) != len(header):
                reason = f"{len(cells)} cells where the header has {len(header)}"
                cells = (cells + [""] * len(header))[: len(header)]
            kept_cells = tuple(cells[i] for i in kept_at)
            found.add(row, cells[doc_at] or None, cells[text_at], kept_cells, reason)
            found.bytes += sum(len(cell.encode(errors="surrogateescape")) for cell in cells)
            row += 1
            if len(found.rows) >= limits[0] or found.bytes >= limits[1]:
                yield found.table(kept), shard.position()
                found = Lines()
        if found.rows:
            yield found.table(kept), shard.position()
        for error in damage:
            raise error


def csv_types(shard: OpenShard, columns: CorpusColumns) -> dict[str, pa.DataType]:  # noqa: ARG001
    """The kept columns' Arrow types: csv has nothing but text."""
    return dict.fromkeys(columns.kept, pa.string())
