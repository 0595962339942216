"""The corpus: which shards there are, what they keep, and their rows as a Ray Dataset."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import ray.data
from ray.data import Dataset

from stella_ray.errors import CorpusError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import Pool, configure_data, keep_ray_data_quiet
from stella_ray.pipeline.shards import (
    COMPRESSIONS,
    FORMATS,
    Shard,
    arrow_rows,
    read_shard,
    shard_format,
)
from stella_ray.storage import absolute, filesystem

log = logging.getLogger(__name__)

_READABLE = f"{', '.join(FORMATS)} (each but parquet also with {' or '.join(COMPRESSIONS)})"


def find_shards(corpus: Sequence[str]) -> list[Shard]:
    """List the shards of files, folders and globs, each once, ordered by path.

    A folder is searched to its depth; names that start with `.` or `_` are passed over, in globs
    too, and so are files of other formats in a folder, these with a word in the log.

    Raises:
        CorpusError: nothing there, or a file that is named but can't be read here.
    """
    found: dict[str, Shard] = {}
    for item in corpus:
        for shard in _shards_of(absolute(item)):
            found.setdefault(_place(shard.path), shard)
    if not found:
        raise CorpusError("--corpus names no shard; give files, folders or globs")
    return sorted(found.values(), key=lambda shard: shard.path)


def _place(path: str) -> str:
    """Where a shard really lies: `..` and links can name it twice."""
    local = path.removeprefix("file://")
    return path if "://" in local else str(Path(local).resolve())


def _shards_of(item: str) -> list[Shard]:
    store, path = filesystem(item)
    scheme = item.partition("://")[0] + "://" if "://" in item else ""
    try:
        if store.isfile(path):
            infos, named = [store.info(path)], True
        elif store.isdir(path):
            infos, named = list(store.find(path, detail=True).values()), False
            infos = [i for i in infos if not _hidden(i["name"], path)]
        elif any(c in path for c in "*?["):
            infos, named = _matches(store, path), True
        else:
            raise CorpusError(f"{item}: no such file or folder; check --corpus")
    except PermissionError as error:
        raise CorpusError(f"{item}: can't be listed ({error}); check its permissions") from None
    if not infos:
        kind = "no file matches this pattern" if named else "the folder holds no file"
        raise CorpusError(f"{item}: {kind}; check --corpus")
    readable = [info for info in infos if shard_format(info["name"])]
    other = [info["name"] for info in infos if not shard_format(info["name"])]
    if other and named:
        raise CorpusError(f"{other[0]}: not a format that is read here; expected {_READABLE}")
    if not readable:
        raise CorpusError(
            f"{item}: none of its {len(other)} files is a shard; expected {_READABLE}"
        )
    if other:
        log.warning(
            "%s: passed over %d files that aren't shards, %s first", item, len(other), other[0]
        )
    return [Shard(f"{scheme}{info['name']}", int(info["size"])) for info in readable]


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


def look_at(shards: Sequence[Shard], columns: CorpusColumns, kept: Sequence[pa.Field]) -> None:
    """Read the first rows of the first shard of each format: a wrong column is then found at once.

    Raises:
        CorpusError: what reading that shard raises.
    """
    first_of = {shard_format(shard.path): shard for shard in reversed(shards)}
    for shard in first_of.values():
        with contextlib.closing(read_shard(shard, 0, columns, kept, ROWS_FOR_A_LOOK)) as windows:
            next(windows)


class Corpus(Protocol):
    """Where rows come from."""

    @property
    def bytes(self) -> int:
        """Size, for the time left; 0 if unknown."""
        ...

    def rows(self, pool: Pool) -> Dataset:
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

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def rows(self, pool: Pool) -> Dataset:
        """See `Corpus.rows`."""
        items = [
            {"number": i, "path": shard.path, "bytes": shard.bytes}
            for i, shard in enumerate(self.shards)
        ]
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            read_shards,
            fn_kwargs={
                "columns": self.columns,
                "kept": tuple(self.kept),
                "window_rows": pool.window_rows,
            },
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.task_cpus,
        )

    def shard_name(self, number: int) -> str:
        """The shard's path."""
        return self.shards[number].path


def read_shards(
    block: pa.Table, columns: CorpusColumns, kept: Sequence[pa.Field], window_rows: int
) -> Iterator[pa.Table]:
    """Yield the windows of the shards that `block` lists (number, path, bytes)."""
    keep_ray_data_quiet()
    for item in block.to_pylist():
        shard = Shard(item["path"], item["bytes"])
        yield from read_shard(shard, item["number"], columns, kept, window_rows)


@dataclass(frozen=True)
class DatasetCorpus:
    """A corpus that is a Ray Dataset already; rows have no place, so rejects name only their ids.

    It is read a second time where an id stands for several texts, and must then give the same rows.
    """

    dataset: Dataset
    columns: CorpusColumns
    kept: Sequence[pa.Field]
    bytes: int = 0

    def rows(self, pool: Pool) -> Dataset:
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
