"""The corpus: which shards there are, what they keep, and their rows as a Ray Dataset."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import ray

from stella_ray.errors import BadShard, CorpusError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import Pool, configure_data, keep_ray_data_quiet
from stella_ray.pipeline.formats import format_of, readable_formats, shard_format
from stella_ray.pipeline.shards import (
    BAD_FOR_A_LOOK,
    Shard,
    arrow_rows,
    bad_shard_row,
    read_shard,
)
from stella_ray.pipeline.stamps import stamp_of
from stella_ray.storage import StorageSettings, absolute, filesystem
from stella_ray.storage_faults import storage_errors

log = logging.getLogger(__name__)

OnBadShard = Literal["fail", "reject"]

TASKS_PER_ENCODER, BYTES_PER_TASK = 16, 64 << 20
"""Small shards are read several by one task, as long as that leaves so many tasks, and of a task's
bytes no more."""

ROWS_PER_READ = 8_192
"""Rows that are read and judged together, or fewer where they are long (`BYTES_PER_WINDOW`): in 512
each costs twice as much."""


def find_shards(corpus: Sequence[str], storage: StorageSettings = StorageSettings()) -> list[Shard]:
    """List the shards of files, folders and globs, each once, ordered by path.

    A folder is searched to its depth; names that start with `.` or `_` are passed over, in globs
    too, and so are files of other formats in a folder, these with a word in the log.

    Raises:
        CorpusError: nothing there, or a file that is named but can't be read here.
    """
    found: dict[str, Shard] = {}
    for item in corpus:
        for shard in _shards_of(absolute(item), storage):
            found.setdefault(_place(shard.path), shard)
    if not found:
        raise CorpusError("--corpus names no shard; give files, folders or globs")
    return sorted(found.values(), key=lambda shard: shard.path)


def _place(path: str) -> str:
    """Where a shard really lies: `..` and links can name it twice."""
    local = path.removeprefix("file://")
    return path if "://" in local else str(Path(local).resolve())


def _shards_of(item: str, storage: StorageSettings) -> list[Shard]:
    store, path = filesystem(item, storage)
    scheme = item.partition("://")[0] + "://" if "://" in item else ""
    try:
        with storage_errors(item, storage, CorpusError):
            infos, named = _infos(store, path, item)
    except PermissionError as error:
        raise CorpusError(f"{item}: can't be listed ({error}); check its permissions") from None
    if not infos:
        kind = "no file matches this pattern" if named else "the folder holds no file"
        raise CorpusError(f"{item}: {kind}; check --corpus")
    readable = [info for info in infos if shard_format(info["name"])]
    other = [info["name"] for info in infos if not shard_format(info["name"])]
    if other and named:
        format_of(other[0])
    if not readable:
        raise CorpusError(
            f"{item}: none of its {len(other)} files is a shard; expected {readable_formats()}"
        )
    if other:
        log.warning(
            "%s: passed over %d files that aren't shards, %s first", item, len(other), other[0]
        )
    return [
        Shard(f"{scheme}{info['name']}", int(info["size"]), stamp_of(info)) for info in readable
    ]


def _infos(store: Any, path: str, item: str) -> tuple[list[dict[str, Any]], bool]:
    """What a file, folder or glob stands for; and whether it was named, not found in a folder."""
    # One listing answers for a folder on S3: of 10,000 shards, ten requests.
    found = store.find(path, detail=True)
    if path.rstrip("/") in found:
        return [store.info(path)], True
    if found:
        infos = found.values()
        return [
            i for i in infos if not (i["name"].endswith("/") or _hidden(i["name"], path))
        ], False
    if store.isdir(path):
        return [], False
    if any(c in path for c in "*?["):
        return _matches(store, path), True
    raise CorpusError(f"{item}: no such file or folder; check --corpus")


def _matches(store: Any, pattern: str) -> list[dict[str, Any]]:
    """The files that a glob names, and those in folders that it names (Spark's `x.parquet/`)."""
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] or "/"
    found: dict[str, dict[str, Any]] = {}
    for name, info in store.glob(pattern, detail=True).items():
        if info["type"] == "directory":
            inside = store.find(name, detail=True)
            found |= {n: i for n, i in inside.items() if shard_format(n) and not _hidden(n, fixed)}
        elif not _hidden(name, fixed):
            found[name] = info
    return list(found.values())


def _hidden(name: str, below: str) -> bool:
    return any(part.startswith((".", "_")) for part in Path(name).relative_to(below).parts)


ROWS_FOR_A_LOOK = 64


def look_at(
    shards: Sequence[Shard],
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    storage: StorageSettings,
    *,
    reject: bool = False,
) -> None:
    """Read the first rows of the first shard of each format: a wrong column is then found at once.

    Args:
        shards: of the corpus.
        columns: what is looked for.
        kept: the kept columns.
        storage: where S3 is.
        reject: whether bad shards may be passed over, as long as a good one comes soon.

    Raises:
        CorpusError: what reading that shard raises.
    """
    for form in dict.fromkeys(shard_format(shard.path) for shard in shards):
        fault: BadShard | None = None
        for shard in [s for s in shards if shard_format(s.path) == form][:BAD_FOR_A_LOOK]:
            windows = read_shard(shard, 0, columns, kept, ROWS_FOR_A_LOOK, storage)
            try:
                with contextlib.closing(windows):
                    next(windows)
            except BadShard as error:
                fault = fault or error
                if not reject:
                    break
            else:
                fault = None
                break
        if fault is not None:
            raise fault


class Corpus(Protocol):
    """Where rows come from."""

    @property
    def bytes(self) -> int:
        """Size, for the time left; 0 if unknown."""
        ...

    def rows(self, pool: Pool) -> ray.data.Dataset:
        """The rows as blocks of the schema `rows.source`; the same rows each time it is called."""
        ...

    def shard_name(self, number: int) -> str:
        """What the rejects call shard `number`."""
        ...


@dataclass(frozen=True)
class ShardedCorpus:
    """A corpus of files: one task a shard, several side by side."""

    shards: Sequence[Shard]
    columns: CorpusColumns
    kept: Sequence[pa.Field]
    storage: StorageSettings = StorageSettings()
    on_bad_shard: OnBadShard = "fail"

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def rows(self, pool: Pool) -> ray.data.Dataset:
        """See `Corpus.rows`."""
        items = [
            {"number": i, "path": shard.path, "bytes": shard.bytes}
            for i, shard in enumerate(self.shards)
        ]
        tasks = ray.data.from_items(items, override_num_blocks=self._tasks(pool))
        return tasks.map_batches(
            read_shards,
            fn_kwargs={
                "columns": self.columns,
                "kept": tuple(self.kept),
                "window_rows": ROWS_PER_READ,
                "storage": self.storage,
                "on_bad_shard": self.on_bad_shard,
            },
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pool.task_cpus,
        )

    def _tasks(self, pool: Pool) -> int:
        """Reading tasks: one a shard, or fewer where shards are small and many.

        A task costs Ray some 10 ms: 10,000 shards of a few kilobytes would cost minutes. And one
        that holds less than a window makes a small window, of more padding.
        """
        enough = max(
            TASKS_PER_ENCODER * (pool.most_encoders or pool.encoders),
            -(-self.bytes // BYTES_PER_TASK),
        )
        windows = -(-self.bytes // pool.block_bytes)
        return max(1, min(len(self.shards), enough, windows))

    def shard_name(self, number: int) -> str:
        """The shard's path."""
        return self.shards[number].path


def read_shards(
    block: pa.Table,
    columns: CorpusColumns,
    kept: Sequence[pa.Field],
    window_rows: int,
    storage: StorageSettings = StorageSettings(),
    on_bad_shard: OnBadShard = "fail",
) -> Iterator[pa.Table]:
    """Yield the windows of the shards that `block` lists (number, path, bytes).

    Raises:
        BadShard: a shard can't be read to its end, unless it is to be rejected.
    """
    keep_ray_data_quiet()
    for item in block.to_pylist():
        shard, rows = Shard(item["path"], item["bytes"]), 0
        try:
            for window in read_shard(shard, item["number"], columns, kept, window_rows, storage):
                yield window
                rows += len(window)
        except BadShard as error:
            if on_bad_shard == "fail":
                raise
            yield bad_shard_row(item["number"], rows, error, kept)


@dataclass(frozen=True)
class DatasetCorpus:
    """A corpus that is a Ray Dataset already; rows have no place, so rejects name only their ids.

    It is read a second time where an id stands for several texts, and must then give the same rows.
    """

    dataset: ray.data.Dataset
    columns: CorpusColumns
    kept: Sequence[pa.Field]
    bytes: int = 0

    def rows(self, pool: Pool) -> ray.data.Dataset:
        """See `Corpus.rows`."""
        configure_data(pool, self.dataset.context)  # it keeps the one that it was made under
        return self.dataset.map_batches(
            dataset_rows,
            fn_kwargs={"columns": self.columns, "kept": tuple(self.kept)},
            batch_size=pool.window_rows,
            batch_format="pyarrow",
            num_cpus=pool.task_cpus,
        )

    def shard_name(self, number: int) -> str:  # noqa: ARG002 - one name for all
        """A dataset has no shards."""
        return "dataset"


def dataset_rows(block: pa.Table, columns: CorpusColumns, kept: Sequence[pa.Field]) -> pa.Table:
    """A block of a user's dataset as rows of the schema `rows.source`."""
    keep_ray_data_quiet()
    return arrow_rows("the dataset", block, columns, kept)
