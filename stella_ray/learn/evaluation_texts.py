"""The texts of evaluation sets, from files as they come: whatever their columns are called."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from stella_ray.errors import CorpusError
from stella_ray.learn.reading import (
    ENDS,
    LONGEST_FIELD,
    ROWS_AT_ONCE,
    file_form,
    list_files,
    opened,
    python_rows,
    read_tree,
)
from stella_ray.storage import StorageSettings
from stella_ray.streams import CsvText, whole_lines

TREE = ".json"
"""One JSON value for the whole file, as SQuAD, CMRC and DRCD come."""

SQUAD = ("question", "context")
"""What is read of a tree where no columns are named; answers are parts of contexts."""

_ID = re.compile(r"_?id|.*[_-]id|.*Id", re.DOTALL)


@dataclass(frozen=True)
class EvaluationText:
    """A text and where it stands; `row` counts from 0, a line's number in jsonl."""

    text: str
    path: str
    row: int
    column: str


def evaluation_files(item: str, storage: StorageSettings = StorageSettings()) -> list[str]:
    """The files of one evaluation set: a file, a folder or a glob.

    Raises:
        CorpusError: there is none, or one is of no format that is read here.
    """
    return list_files([item], "--against", storage, (*ENDS, TREE))


def evaluation_texts(
    path: str, columns: Sequence[str] = (), storage: StorageSettings = StorageSettings()
) -> Iterator[EvaluationText]:
    """Yield every text of a file, blank ones left out; of a list of texts each.

    Args:
        path: parquet, jsonl, csv, or a tree of JSON.
        columns: which to read, those of them that the file has. Default: of rows all that hold
            text and aren't called an id, of a tree `SQUAD`.
        storage: where S3 is.

    Raises:
        CorpusError: the file can't be read, or holds no text there.
    """
    form, found = file_form(path, (*ENDS, TREE)), False
    there: dict[str, None] = {}
    with opened(path, storage) as file:
        for row, name, value in _FORMS[form or TREE](path, file):
            there.setdefault(name)
            if name not in columns if columns else not _wanted(name, form):
                continue
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text.strip():
                    found = True
                    yield EvaluationText(text, path, row, name)
    if not found:
        wanted = ", ".join(columns or (SQUAD if form == TREE else ["any column"]))
        raise CorpusError(
            f"{path}: no text in {wanted}; it has {', '.join(there) or 'nothing'}. Say which"
            " columns hold the texts with --against_columns"
        )


def _wanted(name: str, form: str | None) -> bool:
    return name in SQUAD if form == TREE else not _ID.fullmatch(name)


Cell = tuple[int, str, Any]


def _parquet(path: str, file: IO[bytes]) -> Iterator[Cell]:
    parquet = pq.ParquetFile(file)
    names = [field.name for field in parquet.schema_arrow if _textual(field.type)]
    row = 0
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=names):
        for cells in python_rows(path, row, batch):
            yield from ((row, name, value) for name, value in cells.items())
            row += 1


def _textual(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _jsonl(path: str, file: IO[bytes]) -> Iterator[Cell]:
    for number, line in enumerate(whole_lines(path, file)):
        if not line.strip():
            continue
        row = _json(path, line, f" row {number} (from 0):")
        if not isinstance(row, dict):
            raise CorpusError(f"{path}: row {number} (from 0): expected a JSON object a line")
        yield from ((number, name, value) for name, value in row.items())


def _csv(_path: str, file: IO[bytes]) -> Iterator[Cell]:
    csv.field_size_limit(LONGEST_FIELD)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        bounded = CsvText(text)
        reader = csv.reader(bounded, strict=True)
        header = next(reader, [])
        for number, cells in enumerate(cells for cells in reader if cells):
            bounded.row_characters = 0
            yield from ((number, *cell) for cell in zip(header, cells, strict=False))


def _tree(path: str, file: IO[bytes]) -> Iterator[Cell]:
    """Every key of every object, however deep; the row is the place in the order of the file."""
    todo, number = [_json(path, read_tree(path, file), "")], 0
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from ((number, name, below) for name, below in value.items())
            number += 1
            value = list(value.values())
        if isinstance(value, list):
            todo += value[::-1]


def _json(path: str, text: bytes, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise CorpusError(f"{path}:{where} no JSON ({error})") from None


_FORMS = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, TREE: _tree}
