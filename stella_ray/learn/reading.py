"""Reading training examples: files of pairs, scored pairs or NLI, row by row, checked.

A bad row stops the reading with its file and number: what the recipe learns from is curated, and a
row that was dropped silently would be missed by nobody.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from stella_ray.errors import CorpusError, StellaError, brief
from stella_ray.learn.sources import ExampleSource
from stella_ray.storage import StorageSettings, absolute, filesystem
from stella_ray.storage_faults import storage_errors
from stella_ray.streams import CsvText, unpacked, whole_lines

ENDS = (".parquet", ".jsonl", ".ndjson", ".csv")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
ROWS_AT_ONCE = 1_024
LARGEST_TREE = 1 << 30
"""Bytes of a JSON value, unpacked; it takes several times that once it is parsed."""
LONGEST_FIELD = 2**31 - 1
"""csv's own limit of 131,072 characters a field is below a long document."""


@dataclass(frozen=True)
class Example:
    """A row that was read and is right; `label` is NaN for pairs."""

    query: str
    passage: str
    negatives: list[str]
    label: float


def find_files(source: ExampleSource, storage: StorageSettings = StorageSettings()) -> list[str]:
    """The source's files in order; a glob's and a folder's by name.

    Raises:
        CorpusError: one isn't there, or of no format that is read here.
    """
    return list_files(source.files, f"the files of source {source.name!r}", storage)


def list_files(
    items: Sequence[str],
    where: str,
    storage: StorageSettings = StorageSettings(),
    ends: Sequence[str] = ENDS,
) -> list[str]:
    """Files, folders and globs as files of formats that are read here, in order.

    Args:
        items: a folder's files of other formats are passed over.
        where: what to check where one isn't there.
        storage: where S3 is.
        ends: of the names of files, compression left out.

    Raises:
        CorpusError: one isn't there, or of no format that is read here.
    """
    found: list[str] = []
    for item in items:
        uri = absolute(item)
        store, path = filesystem(uri, storage)
        scheme = uri.partition("://")[0] + "://" if "://" in uri else ""
        with storage_errors(uri, storage, CorpusError):
            if re.search(r"[*?\[]", path):
                names = sorted(str(name) for name in store.glob(path))
            elif store.isfile(path):
                names = [str(path)]
            else:  # a folder's, or none
                names = sorted(str(name) for name in store.find(path) if file_form(str(name), ends))
        if not names:
            raise CorpusError(f"{item}: no such file; check {where}")
        found += [scheme + name for name in names]
    for path in found:
        if file_form(path, ends) is None:
            raise CorpusError(
                f"{path}: not a format that is read here; expected {', '.join(ends)}, each but"
                f" parquet also with {' or '.join(COMPRESSED)}"
            )
    return found


def file_form(path: str, ends: Sequence[str] = ENDS) -> str | None:
    """The end of a file's name that says its format; None if it isn't read here."""
    stem = path.rpartition(".")[0] if path.endswith(tuple(COMPRESSED)) else path
    end = next((end for end in ends if stem.endswith(end)), None)
    return None if end == ".parquet" and stem != path else end


def read_examples(
    path: str, source: ExampleSource, storage: StorageSettings = StorageSettings()
) -> Iterator[Example]:
    """Yield a file's examples in constant memory.

    Raises:
        CorpusError: with the file and, of a row that isn't right, its number, from 0; a line's
            number in jsonl, a row's behind the header in csv.
    """
    count = 0
    with opened(path, storage) as file:
        form = file_form(path)
        if form == ".parquet":
            rows = _parquet(path, file, source)
        elif form == ".csv":
            rows = _csv(path, file, source)
        else:
            rows = _jsonl(path, file, source)
        for number, row in rows:
            try:
                yield _checked(row, source)
            except ValueError as fault:
                raise CorpusError(f"{path}: row {number} (from 0): {fault}") from None
            count += 1
    if not count:
        raise CorpusError(f"{path}: the file is empty; expected at least one row")


@contextlib.contextmanager
def opened(path: str, storage: StorageSettings) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed; whatever goes wrong below names it."""
    store, inner = filesystem(path, storage)
    try:
        with storage_errors(path, storage, CorpusError), store.open(inner, "rb") as raw:
            yield unpacked(raw, COMPRESSED.get(path[path.rfind(".") :]))
    except StellaError:
        raise
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, UnicodeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorpusError(f"{path}: can't be read ({reason}); expected a whole file") from None


def read_tree(path: str, file: IO[bytes]) -> bytes:
    """All bytes of a file that is one JSON value, without a byte order mark.

    Raises:
        CorpusError: it is too large to be read whole.
    """
    tree = file.read(LARGEST_TREE + 1)
    if len(tree) > LARGEST_TREE:
        raise CorpusError(
            f"{path}: one JSON value of more than {LARGEST_TREE:,} bytes is too large to be read"
            " whole; expected a file of lines (.jsonl) for so much"
        )
    return tree.removeprefix(b"\xef\xbb\xbf")


Row = tuple[int, dict[str, Any]]


def _parquet(path: str, file: IO[bytes], source: ExampleSource) -> Iterator[Row]:
    parquet = pq.ParquetFile(file)
    _check_columns(path, source, parquet.schema_arrow.names)
    number = 0
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=source.columns):
        for row in python_rows(path, number, batch):
            yield number, row
            number += 1


def python_rows(path: str, first: int, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A batch's rows as Python has them.

    Raises:
        CorpusError: a time or the like that Python can't hold, with the rows it is among.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        raise CorpusError(
            f"{path}: rows {first} to {first + len(batch) - 1} (from 0): a value can't be read"
            f" ({error}); expected text and numbers"
        ) from None
    return rows


def _jsonl(path: str, file: IO[bytes], source: ExampleSource) -> Iterator[Row]:
    """A line may lack its negatives, which is to have none; not all lines may."""
    optional, lack, row = source.negatives_column, True, {}
    for number, line in enumerate(whole_lines(path, file)):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise CorpusError(f"{path}: row {number} (from 0): no line of JSON ({error})") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{path}: row {number} (from 0): expected a JSON object a line")
        if optional:
            lack = lack and optional not in row
            row.setdefault(optional, None)
        yield number, row
    if optional and lack and row:
        _check_columns(path, source, [name for name in row if name != optional])


def _csv(path: str, file: IO[bytes], source: ExampleSource) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        bounded = CsvText(text)
        reader = csv.reader(bounded, strict=True)
        header = next(reader, [])
        _check_columns(path, source, header)
        for number, cells in enumerate(cells for cells in reader if cells):
            bounded.row_characters = 0
            if len(cells) != len(header):
                raise CorpusError(
                    f"{path}: row {number} (from 0): {len(cells)} cells where the header has"
                    f" {len(header)}"
                )
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            name = source.negatives_column
            if name and source.negatives_are == "list" and row[name]:
                with contextlib.suppress(
                    ValueError, RecursionError
                ):  # stays text, which is no list
                    row[name] = json.loads(row[name])
            elif name:
                row[name] = row[name] or None
            yield number, row


def _check_columns(path: str, source: ExampleSource, there: list[str]) -> None:
    if missing := [name for name in source.columns if name not in there]:
        raise CorpusError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(there) or 'none'}. Say"
            f" which to read in source {source.name!r}: query_column, passage_column, …"
        )


def _checked(row: dict[str, Any], source: ExampleSource) -> Example:
    """The row as an example; ValueError with what is wrong with it."""
    if missing := [name for name in source.columns if name not in row]:
        raise ValueError(f"no column {', '.join(missing)}; it has {', '.join(row) or 'none'}")
    query = _text(row[source.query_column], source.query_column)
    passage = _text(row[source.passage_column], source.passage_column)
    if source.kind != "pairs":
        return Example(query, passage, [], _label(row[source.label_column], source))
    negatives = row[source.negatives_column] if source.negatives_column else None
    name = source.negatives_column
    if negatives is None:
        negatives = []
    elif source.negatives_are == "text":
        negatives = [negatives]
    elif not isinstance(negatives, list):
        raise ValueError(
            f"column {name} is {brief(negatives)}, expected a list of texts (negatives_are: text"
            " reads one text)"
        )
    checked = [_text(text, f"{name}[{i}]") for i, text in enumerate(negatives)]
    return Example(query, passage, checked, math.nan)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"column {name} is {brief(value)}, expected text")
    if not value.strip():
        raise ValueError(f"column {name} is empty, expected text")
    value.encode()  # raises UnicodeEncodeError, which is a ValueError, on half a character
    return value


def _label(value: Any, source: ExampleSource) -> float:
    name = source.label_column
    if source.kind == "nli":
        label = str(value) if isinstance(value, (str, int, float)) else None
        if label not in source.label_order or isinstance(value, bool):
            order = " < ".join(source.label_order)
            raise ValueError(f"column {name} is {brief(value)}, expected one of {order}")
        return float(source.label_order.index(label))
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"column {name} is {brief(value)}, expected a finite number")
    low = -math.inf if source.lowest_score is None else source.lowest_score
    high = math.inf if source.highest_score is None else source.highest_score
    if not low <= score <= high:
        raise ValueError(f"column {name} is {score:g}, out of range; expected {low:g} to {high:g}")
    return score
