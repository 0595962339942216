"""The publishing gate: what a version must show before readers may see it.

    rows       exactly the rows that the run planned, each key once
    documents  no id stands for two documents; a document's chunks are there, each once
    vectors    no null, NaN or infinity; length 1
    index      every index covers every row
    recall     the vector index finds what an exact search finds
    encoding   stored vectors agree with the same rows encoded again, alone and in float32

Every check is made even if one before it failed: who looks at the night sees all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import lance
import numpy as np
import pyarrow as pa

from stella_ray.errors import IncompleteRun, SettingsError, TableError
from stella_ray.table.documents import broken_documents, take
from stella_ray.table.fragments import lance_errors
from stella_ray.table.index import uncovered_rows
from stella_ray.table.keys import KnownKeys
from stella_ray.table.recall import recall
from stella_ray.table.vectors import VectorTable

NEIGHBOURS = 10
"""Hits that recall is measured on."""

READ_AHEAD = 64 << 20
ROWS_PER_BATCH = 1_024
"""What the scan of new vectors has in flight and in hand: by Lance's own 2 GiB and all fragments at
once, the driver would need the most memory here."""

Samples = tuple[np.ndarray, np.ndarray]
"""Keys, `S16` [n], and the vectors that the encoder gave for these rows alone, float32 [n, dim]."""


WRONG_VECTORS = frozenset({"vectors", "encoding"})
"""Checks whose failure says that rows must be embedded anew; what the others find, the next run
mends by itself or a setting allows."""


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a version must show before `live` moves to it."""

    min_recall: float = 0.9
    """Share of the ten nearest rows that the vector index must find, on average over queries; an
    index built on other data than what it now holds falls below."""
    recall_queries: int = 100
    """Rows that recall is measured with; each costs one exact search over the whole table."""
    min_cosine: float = 0.999
    """Between a stored vector and the same row encoded alone in float32; bfloat16 and float16 stay
    above it, a wrong prefix, pooling or truncation doesn't."""
    max_norm_error: float = 1e-3
    """How far a vector's length may be from 1; rounding to float16 stays below a tenth of it."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name, fine, expected in (
            ("min_recall", 0 <= self.min_recall <= 1, "0 to 1"),
            ("recall_queries", self.recall_queries >= 1, "1 or more"),
            ("min_cosine", 0 <= self.min_cosine <= 1, "0 to 1"),
            ("max_norm_error", 0 < self.max_norm_error < 1, "more than 0 and less than 1"),
        ):
            if not fine:
                raise SettingsError(
                    f"gate.{name} {getattr(self, name)} can't hold; expected {expected}"
                )


@dataclass(frozen=True)
class GateCheck:
    """One check and what it found, in words."""

    name: str
    passed: bool
    found: str
    expected: str


def check_gate(
    table: VectorTable,
    expected: np.ndarray,
    samples: Samples,
    settings: GateSettings,
    published: int | None,
) -> list[GateCheck]:
    """Check the open version; reads every key, and the vectors that are new.

    Args:
        table: the candidate.
        expected: the keys that it must hold, sorted, each once, `S16` [rows].
        samples: rows written in this run, encoded again.
        settings: the floors.
        published: a version that passed the gate, whose data files need not be read again.
    """
    known = table.known()
    checks = [
        partial(_rows, known, expected),
        partial(_documents, table, known),
        partial(_vectors, table, published, settings.max_norm_error),
        partial(_index, table),
        partial(_recall, table, settings),
        partial(_encoding, table, known, samples, settings.min_cosine),
    ]
    return [_tried(table, check) for check in checks]


def refuse(table: VectorTable, checks: Sequence[GateCheck]) -> None:
    """Stop a run whose version did not pass.

    Raises:
        IncompleteRun: a check failed; names all that did, and the version.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        why = "; ".join(f"{one.name}: {one.found} (expected: {one.expected})" for one in failed)
        raise IncompleteRun(
            f"{table.uri} version {table.version} did not pass the publishing gate: {why}. `live`"
            f" is as it was; see `python jobs/publish.py status --table {table.uri}`, and"
            f" `promote {table.version} --force true` there to publish it all the same"
        )


def _tried(table: VectorTable, check: partial[GateCheck]) -> GateCheck:
    try:
        with lance_errors(table.uri, "reading it", table.storage):
            return check()
    except TableError as error:  # such as an index file that is damaged
        name = check.func.__name__.strip("_")
        return GateCheck(name, False, f"could not be checked: {error}", "a readable table")


def _rows(known: KnownKeys, expected: np.ndarray) -> GateCheck:
    want = f"{len(expected):,} rows"
    if np.array_equal(known.keys, expected):
        return GateCheck("rows", True, want, want)
    distinct = np.unique(known.keys)
    missing = len(np.setdiff1d(expected, distinct, assume_unique=True))
    foreign = len(np.setdiff1d(distinct, expected, assume_unique=True))
    doubled = len(known.keys) - len(distinct)
    found = (
        f"{len(known.keys):,} rows: {missing:,} missing, {foreign:,} foreign, {doubled:,} doubled"
    )
    return GateCheck("rows", False, found, want)


def _documents(table: VectorTable, known: KnownKeys) -> GateCheck:
    want = "each id one document, each of its chunks once"
    documents, wrong, examples = broken_documents(table, known)
    if not wrong:
        return GateCheck("documents", True, f"{documents:,} documents", want)
    found = f"{wrong:,} ids with several texts or wrong chunks"
    return GateCheck("documents", False, f"{found}{f', as {examples}' if examples else ''}", want)


def _vectors(table: VectorTable, published: int | None, max_norm_error: float) -> GateCheck:
    want = f"no null or NaN, length 1 within {max_norm_error:g}"
    read = bad = 0
    example: np.ndarray | None = None
    for vectors, addresses in _new_vectors(table, published):
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)) - 1)
        wrong = ~(error <= max_norm_error)  # a NaN is in no order
        read += len(wrong)
        bad += int(wrong.sum())
        if example is None and wrong.any():
            example = addresses[wrong][:1]
    if example is None:
        return GateCheck("vectors", True, f"{read:,} new rows, all unit vectors", want)
    doc_id = take(table, example, ["doc_id"])["doc_id"][0].as_py()
    found = f"{bad:,} of {read:,} new rows hold no unit vector, {doc_id!r} for one"
    return GateCheck("vectors", False, found, want)


def _new_vectors(
    table: VectorTable, published: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield vectors, float32 [rows, dim], and addresses of what lies in files that are new."""
    with lance_errors(table.uri, "reading the new vectors", table.storage):
        dataset = table.dataset
        old = set() if published is None else _files(dataset.checkout_version(published))
        new = [f for f in dataset.get_fragments() if not old.issuperset(_files_of(f))]
        if not new:
            return
        scan = dataset.scanner(
            columns=["vector"],
            fragments=new,
            with_row_address=True,
            batch_size=ROWS_PER_BATCH,
            batch_readahead=2,
            fragment_readahead=1,
            io_buffer_size=READ_AHEAD,
        )
        for batch in scan.to_batches():
            yield _matrix(batch.column("vector")), batch.column("_rowaddr").to_numpy()


def _files(dataset: lance.LanceDataset) -> set[str]:
    return {path for fragment in dataset.get_fragments() for path in _files_of(fragment)}


def _files_of(fragment: lance.LanceFragment) -> list[str]:
    return [file.path for file in fragment.data_files()]


def _index(table: VectorTable) -> GateCheck:
    want = "no row that an index lacks"
    uncovered = uncovered_rows(table)
    lacking = ", ".join(f"{name} lacks {rows:,} rows" for name, rows in uncovered.items() if rows)
    whole = ", ".join(f"{name} is whole" for name in uncovered) or "no index"
    return GateCheck("index", not lacking, lacking or whole, want)


def _recall(table: VectorTable, settings: GateSettings) -> GateCheck:
    want = f"recall@{NEIGHBOURS} of {settings.min_recall:g} or more"
    found = recall(table, queries=settings.recall_queries, k=NEIGHBOURS)
    if found is None:
        return GateCheck("recall", True, "no vector index", want)
    return GateCheck("recall", found >= settings.min_recall, f"{found:.4f}", want)


def _encoding(
    table: VectorTable, known: KnownKeys, samples: Samples, min_cosine: float
) -> GateCheck:
    want = f"cosine of {min_cosine:g} or more to the same row alone in float32"
    keys, alone = samples
    at = known.find(keys)
    at, alone = at[at >= 0], alone[at >= 0]
    if not len(at):
        return GateCheck("encoding", True, "no fresh row", want)
    rows = take(table, known.addresses[at], ["doc_id", "vector"])
    stored, alone = _matrix(rows["vector"]).astype(np.float64), alone.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (stored * alone).sum(1) / (
            np.linalg.norm(stored, axis=1) * np.linalg.norm(alone, axis=1)
        )
    wrong = np.flatnonzero(~(cosines >= min_cosine))
    if not len(wrong):
        return GateCheck("encoding", True, f"{len(at):,} rows, at least {cosines.min():.6f}", want)
    example = rows["doc_id"][int(wrong[0])].as_py()
    found = (
        f"{len(wrong):,} of {len(at):,} rows are below, {example!r} with {cosines[wrong[0]]:.6f}"
    )
    return GateCheck("encoding", False, found, want)


def _matrix(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Vectors as float32 [rows, dim]; nulls are NaN."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    out = np.full((len(column), column.type.list_size), np.nan, np.float32)
    # flatten() leaves the vectors that are null out.
    there = column.is_valid().to_numpy(zero_copy_only=False)
    out[there] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, out.shape[1])
    return out
