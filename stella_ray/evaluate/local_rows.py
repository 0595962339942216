"""Rows of evaluation files, each with the place to name when it is wrong."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn

import orjson
import pyarrow.parquet as pq

from stella_ray.errors import CorpusError, brief
from stella_ray.learn.reading import (
    COMPRESSED,
    ENDS,
    LONGEST_FIELD,
    ROWS_AT_ONCE,
    file_form,
    python_rows,
)
from stella_ray.learn.reading import opened as opened_file
from stella_ray.storage import StorageSettings, absolute, filesystem
from stella_ray.storage_faults import storage_errors
from stella_ray.streams import CsvText, whole_lines

FORMS = (*ENDS, ".tsv")


@dataclass(frozen=True)
class Row:
    """A row's cells and where it stands."""

    path: str
    where: str
    cells: dict[str, Any]

    def refuse(self, fault: str) -> NoReturn:
        """Stop with the place and what is wrong there."""
        raise CorpusError(f"{self.path}: {self.where}: {fault}")

    def cell(self, names: Sequence[str]) -> Any:
        """The first of these columns that the row has."""
        for name in names:
            if name in self.cells:
                return self.cells[name]
        others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        there = ", ".join(map(str, self.cells)) or "none"
        return self.refuse(f"no column {names[0]}{others}; it has {there}")

    def text(self, names: Sequence[str]) -> str:
        """A text that isn't blank."""
        return self.checked_text(self.cell(names), names[0])

    def checked_text(self, value: Any, name: str) -> str:
        """`value` if it is a text that isn't blank."""
        if not isinstance(value, str):
            self.refuse(f"{name} is {brief(value)}, expected text")
        if not value.strip():
            self.refuse(f"{name} is empty, expected text; mend the row or leave it out")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(f"{name} holds half a character, expected text")
        return value

    def texts(self, names: Sequence[str]) -> list[str]:
        """A list of texts; a single text is a list of one."""
        value = self.cell(names)
        if isinstance(value, str) and value.startswith("["):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                self.refuse(f"{names[0]} is {brief(value)}, expected a list of texts")
        items = value if isinstance(value, list) else [value]
        return [self.checked_text(item, f"{names[0]}[{i}]") for i, item in enumerate(items)]

    def name(self, names: Sequence[str]) -> str:
        """An id: text, or a whole number as text."""
        value = self.cell(names)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            self.refuse(f"{names[0]} is {brief(value)}, expected an id")
        return str(value)

    def number(self, names: Sequence[str], low: float, high: float) -> float:
        """A number in a range."""
        value = self.cell(names)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            self.refuse(f"{names[0]} is {brief(value)}, expected a number")
        if not low <= number <= high:
            self.refuse(f"{names[0]} is {brief(value)}, out of range; expected {low:g} to {high:g}")
        return number


def read_rows(path: str, storage: StorageSettings = StorageSettings()) -> Iterator[Row]:
    """Yield a file's rows: lines count from 1, a parquet file's rows from 0.

    Raises:
        CorpusError: it can't be read, or holds none.
    """
    form = file_form(path, FORMS)
    reader = {".parquet": _parquet, ".csv": _csv, ".tsv": _tsv}.get(form or "", _jsonl)
    empty = True
    with opened_file(path, storage) as file:
        for row in reader(path, file):
            empty = False
            yield row
    if empty:
        raise CorpusError(f"{path}: the file is empty; expected at least one row")


def _jsonl(path: str, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(whole_lines(path, file), 1):
        if not line.strip():
            continue
        try:
            cells = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise CorpusError(f"{path}: line {number}: no line of JSON ({error})") from None
        if not isinstance(cells, dict):
            raise CorpusError(f"{path}: line {number}: expected a JSON object a line")
        yield Row(path, f"line {number}", cells)


def _csv(path: str, file: IO[bytes], separator: str = ",", quoted: bool = True) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        bounded = CsvText(text)
        reader = csv.reader(bounded, delimiter=separator, quoting=quoting, strict=True)
        header = next(reader, [])
        for cells in reader:
            bounded.row_characters = 0
            if not cells:
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"{path}: line {reader.line_num}: {len(cells)} cells where the header has"
                    f" {len(header)}"
                )
            yield Row(path, f"line {reader.line_num}", dict(zip(header, cells, strict=True)))


def _tsv(path: str, file: IO[bytes]) -> Iterator[Row]:
    """Cells as they stand: a quotation mark is a character of a text."""
    yield from _csv(path, file, "\t", quoted=False)


def _parquet(path: str, file: IO[bytes]) -> Iterator[Row]:
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
        for cells in python_rows(path, number, batch):
            yield Row(path, f"row {number} (from 0)", cells)
            number += 1


def stems(folder: str, storage: StorageSettings = StorageSettings()) -> dict[str, str]:
    """The files of a folder that are read here, by their names in small letters without endings.

    Raises:
        CorpusError: two files of one name, or a store that can't be read.
    """
    uri = absolute(folder)
    store, path = filesystem(uri, storage)
    scheme = uri.partition("://")[0] + "://" if "://" in uri else ""
    with storage_errors(uri, storage, CorpusError):
        names = sorted(str(name) for name in store.ls(path, detail=False))
    out: dict[str, str] = {}
    for name in names:
        if (form := file_form(name, FORMS)) is None:
            continue
        stem = PurePosixPath(name).name.lower()
        for end in COMPRESSED:
            stem = stem.removesuffix(end)
        stem = stem.removesuffix(form)
        if stem in out:
            raise CorpusError(f"{folder}: {out[stem]} and {name} are both {stem!r}; leave one")
        out[stem] = scheme + name
    return out


def folders(parent: str, storage: StorageSettings = StorageSettings()) -> dict[str, str]:
    """The folders of a folder by their names in small letters.

    Raises:
        CorpusError: there is no such folder.
    """
    uri = absolute(parent)
    store, path = filesystem(uri, storage)
    scheme = uri.partition("://")[0] + "://" if "://" in uri else ""
    with storage_errors(uri, storage, CorpusError):
        if not store.isdir(path):
            raise CorpusError(f"--data {parent}: no such folder; expected one with a folder a task")
        found = [
            str(one["name"]) for one in store.ls(path, detail=True) if one["type"] == "directory"
        ]
    return {PurePosixPath(name).name.lower(): scheme + name for name in sorted(found)}


def digest(paths: Sequence[str], storage: StorageSettings = StorageSettings()) -> str:
    """A digest of files' names and bytes, 32 hexadecimal digits."""
    total = hashlib.sha256()
    for uri in sorted(paths):
        total.update(PurePosixPath(uri).name.encode())
        store, path = filesystem(uri, storage)
        with storage_errors(uri, storage, CorpusError), store.open(path, "rb") as file:
            while piece := file.read(1 << 20):
                total.update(piece)
    return total.hexdigest()[:32]
