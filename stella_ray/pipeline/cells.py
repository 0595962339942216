"""Cells of any origin into the types that the table has, bad ones told apart row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stella_ray.errors import BadShard, brief

CANT_BE = (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError)
"""What Arrow and Python raise of a cell that doesn't fit a type."""


@dataclass(frozen=True, kw_only=True)
class CorpusColumns:
    """Which columns of the corpus are read."""

    doc_id: str = "id"
    text: str = "text"
    kept: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys([self.doc_id, self.text, *self.kept]))


def empty_shard(path: str) -> BadShard:
    """What is said of a shard without rows: often an export that broke off."""
    return BadShard(
        f"{path}: the shard is empty; expected at least one row, so export it again or take it out"
        " of the corpus"
    )


def check_columns(path: str, wanted: list[str], there: Sequence[str]) -> None:
    """Check that a shard has each column that is read, once.

    Raises:
        BadShard: names those that are missing or doubled, and the way out.
    """
    if missing := [name for name in wanted if name not in there]:
        raise BadShard(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(there) or 'none'}."
            " Say which to read with --doc_id_column, --text_column and --keep_columns"
        )
    if doubled := [name for name in wanted if list(there).count(name) > 1]:
        raise BadShard(
            f"{path}: several columns are called {', '.join(doubled)}; expected one of each,"
            " so rename the others"
        )


def valid_utf8(column: pa.Array, name: str, reasons: list[str | None]) -> pa.Array:
    """The column as strings; a row with bytes that aren't UTF-8 becomes null and gets a reason."""
    column = column.cast(pa.string()) if pa.types.is_integer(column.type) else column
    column = column.cast(pa.binary()).cast(pa.string(), safe=False)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        out: list[str | None] = []
        for i, cell in enumerate(column.cast(pa.binary()).to_pylist()):
            try:
                out.append(None if cell is None else cell.decode())
            except UnicodeDecodeError as error:
                # An id keeps what can be read of it, so that the reject names its row.
                out.append(cell.decode(errors="replace") if name == "id" else None)
                reasons[i] = reasons[i] or not_utf8(name, error)
        return pa.array(out, pa.string())
    return column


def not_utf8(name: str, error: UnicodeError) -> str:
    """The reason of a row whose bytes aren't text."""
    at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
    return f"invalid UTF-8 in the {name}{at}"


def as_type(
    cells: pa.Array | Sequence[Any], field: pa.Field, reasons: list[str | None]
) -> pa.Array:
    """Kept cells in the table's type; one that doesn't fit turns null, its row gets a reason."""
    try:
        if isinstance(cells, pa.Array):
            column = cells.cast(field.type)
            column.validate(full=True)
            return column
        if pa.types.is_string(field.type) or _takes_python_values(field.type):
            return pa.array(cells, field.type)
        return pa.array(cells).cast(field.type)  # pa.array(cells, int64) would cut 1.5 to 1
    except CANT_BE:
        values = _values(cells)
    out = []
    for i, value in enumerate(values):
        try:
            out.append(_one(value, field.type))
        except CANT_BE:
            shown = brief(value)
            reasons[i] = reasons[i] or f"column {field.name} holds {shown}, expected {field.type}"
            out.append(None)
    return pa.array(out, field.type)


def _values(cells: pa.Array | Sequence[Any]) -> list[Any]:
    if not isinstance(cells, pa.Array):
        return list(cells)
    if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        return [
            c if c is None else c.decode("utf-8", "surrogateescape")
            for c in cells.cast(pa.binary()).to_pylist()
        ]
    try:
        return list(cells.to_pylist())
    except OverflowError:  # times beyond Python's years
        return list(cells.cast(pa.string()).to_pylist())


def _takes_python_values(kind: pa.DataType) -> bool:
    """Whether Arrow fills this type from Python's values, but doesn't cast what it infers to it."""
    return bool(pa.types.is_nested(kind) or pa.types.is_decimal(kind))


def _one(value: Any, kind: pa.DataType) -> Any:
    """One cell as `kind`: text is parsed, anything else becomes text where text is wanted."""
    if value is None or (value == "" and not pa.types.is_string(kind)):
        return None
    if pa.types.is_string(kind):
        text = value if isinstance(value, str) else _as_text(value)
        text.encode()
        return text
    if _takes_python_values(kind) and not isinstance(value, str):
        return pa.scalar(value, kind).as_py()
    return pa.scalar(value).cast(kind).as_py()


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
