"""Training examples at rest: memory-mapped Arrow files in which any row is found by its number.

Ray Data's iterators have no state to save, and in-batch negatives need batches of a known
composition, so training reads rows by number; the files are made once for each content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stella_ray.encode.bundled import cache_folder
from stella_ray.errors import CorpusError, SettingsError
from stella_ray.learn.reading import Example, find_files, read_examples
from stella_ray.learn.sources import ExampleSource
from stella_ray.storage import StorageSettings, filesystem
from stella_ray.storage_faults import storage_errors

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the files; goes into their name."""

ROWS_PER_BLOCK, BYTES_PER_BLOCK = 8_192, 8 << 20
"""Where a block of the file ends: what is in memory while it is built."""

MOST_KNOWN = 1_024
"""Known positives of a query that are looked up; of a query with more, the others may meet it as
negatives. Data with one query for everything would fill the memory otherwise."""

SCHEMA = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("passage", pa.string()),
        pa.field("negatives", pa.list_(pa.string())),
        pa.field("label", pa.float64()),
    ]
)


def text_key(text: str) -> int:
    """64 bits by which texts count as the same: NFKC, spaces left out; a signed integer."""
    plain = "".join(unicodedata.normalize("NFKC", text).split())
    digest = hashlib.blake2b(plain.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """The `text_key` of each text, int64."""
    return np.fromiter(map(text_key, texts), np.int64, len(texts))


class ExampleStore:
    """A folder of examples that was built by `open_examples`; safe to share and to send."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        told = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        self.rows: int = told["rows"]
        self.digest: str = told["digest"]
        self._starts = np.load(folder / "starts.npy")
        self._known: np.ndarray = np.load(folder / "known.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[type[ExampleStore], tuple[Path]]:
        """Another process maps the same files."""
        return ExampleStore, (self.folder,)

    @functools.cached_property
    def _file(self) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / "examples.arrow")))

    def take(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """These rows, in this order: query, passage, negatives, label.

        Args:
            rows: numbers in [0, self.rows), int [count].
        """
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        out: list[dict[str, Any]] = [{}] * len(rows)
        for block in np.unique(blocks):
            places = np.flatnonzero(blocks == block)
            found = self._file.get_batch(int(block)).take(rows[places] - self._starts[block])
            for place, row in zip(places.tolist(), found.to_pylist(), strict=True):
                out[place] = row
        return out

    def known_positives(self, query_keys: np.ndarray) -> np.ndarray:
        """All passages that a row of this store gives as an answer to each query.

        Args:
            query_keys: `text_keys` of queries of this store, which is one of pairs, int64 [B].

        Returns:
            Their keys, int64 [B, K], K <= `MOST_KNOWN`; shorter rows repeat their last.
        """
        queries, passages = self._known
        first = np.searchsorted(queries, query_keys, side="left")
        count = np.searchsorted(queries, query_keys, side="right") - first
        count = np.minimum(count, MOST_KNOWN)
        place = np.minimum(np.arange(count.max(initial=1)), count[:, None] - 1)
        return np.asarray(passages[first[:, None] + place])

    def positives_of(self, query_key: int) -> np.ndarray:
        """All passages that a row of this store gives as an answer to a query: keys, sorted."""
        queries, passages = self._known
        first, last = (np.searchsorted(queries, query_key, side=side) for side in ("left", "right"))
        return np.array(passages[first:last])


def open_examples(
    source: ExampleSource,
    cache: Path | None = None,
    storage: StorageSettings = StorageSettings(),
) -> ExampleStore:
    """The source's examples as a store, built where the cache has none of this content.

    Its name is a digest over the bytes of all files and the settings that say how to read them, so
    that a changed file is never taken for the old one.

    Args:
        source: what to read.
        cache: a local folder. Default: `examples` in the cache of bundled models.
        storage: where S3 is.

    Raises:
        CorpusError: with file and row, what can't be read or isn't right.
        SettingsError: the cache can't be written.
    """
    files = find_files(source, storage)
    digest = _digest(source, files, storage)
    folder = (cache or cache_folder() / "examples") / digest
    if not (folder / "store.json").exists():
        log.info("building %s from %s files of source %s", folder, len(files), source.name)
        examples = (one for path in files for one in read_examples(path, source, storage))
        try:
            _build(folder, examples, digest, keyed=source.kind == "pairs")
        except OSError as error:
            raise SettingsError(
                f"{folder}: can't be written ({error}); make room there or set STELLA_RAY_CACHE"
                " to another folder"
            ) from None
    return ExampleStore(folder)


def _digest(source: ExampleSource, files: list[str], storage: StorageSettings) -> str:
    how: list[Any] = [FORMAT, source.kind, source.columns, source.negatives_are]
    if source.kind == "nli":
        how += [source.label_order]
    if source.kind == "scored":
        how += [source.lowest_score, source.highest_score]
    total = hashlib.sha256(json.dumps(how, ensure_ascii=False).encode())
    for path in files:
        store, inner = filesystem(path, storage)
        total.update(Path(path).suffix.encode() + b"\0")
        try:
            with storage_errors(path, storage, CorpusError), store.open(inner, "rb") as file:
                while piece := file.read(1 << 20):
                    total.update(piece)
        except OSError as error:
            raise CorpusError(f"{path}: can't be read ({error}); check its rights") from None
    return total.hexdigest()[:32]


def _build(folder: Path, examples: Iterator[Example], digest: str, *, keyed: bool) -> None:
    """Write the store beside its place, then rename: it is there whole or not at all.

    Where it is `keyed`, so that known positives can be looked up, 16 bytes a row are in memory.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{digest}.", dir=folder.parent) as scratch:
        made = Path(scratch) / "store"
        made.mkdir()
        starts, keys = [0], [np.empty((2, 0), np.int64)]
        with (
            pa.OSFile(str(made / "examples.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as file,
        ):
            for block in _blocks(examples):
                file.write_batch(block)
                starts.append(starts[-1] + len(block))
                if keyed:
                    texts = (block.column(name).to_pylist() for name in ("query", "passage"))
                    keys.append(np.stack([text_keys(column) for column in texts]))
        np.save(made / "starts.npy", np.asarray(starts[:-1], np.int64))
        np.save(made / "known.npy", _distinct_columns(np.concatenate(keys, 1)))
        told = {"digest": digest, "rows": starts[-1]}
        (made / "store.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
        try:
            made.replace(folder)
        except OSError:
            if not (folder / "store.json").exists():  # else another process was faster
                raise


def _blocks(examples: Iterator[Example]) -> Iterator[pa.RecordBatch]:
    rows: list[Example] = []
    size = 0
    for one in examples:
        rows.append(one)
        size += 3 * sum(map(len, (one.query, one.passage, *one.negatives)))
        if len(rows) >= ROWS_PER_BLOCK or size >= BYTES_PER_BLOCK:
            yield _block(rows)
            rows, size = [], 0
    if rows:
        yield _block(rows)


def _block(rows: list[Example]) -> pa.RecordBatch:
    columns = [pa.array([getattr(r, f.name) for r in rows], f.type) for f in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _distinct_columns(keys: np.ndarray) -> np.ndarray:
    """(query, passage) keys, int64 [2, rows], sorted by query, each pair once."""
    ordered = keys[:, np.lexsort(keys[::-1])]
    new = np.ones(ordered.shape[1], bool)
    new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(0)
    return np.ascontiguousarray(ordered[:, new])
