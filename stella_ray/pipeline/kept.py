"""The kept columns: which types they have in the table."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import ray

from stella_ray.errors import BadShard, SettingsError
from stella_ray.pipeline.cells import CorpusColumns, check_columns
from stella_ray.pipeline.columnar import is_text
from stella_ray.pipeline.formats import FORMATS, format_of, shard_format
from stella_ray.pipeline.reading import OpenShard, reading
from stella_ray.pipeline.shards import BAD_FOR_A_LOOK, Shard
from stella_ray.rows import RESERVED
from stella_ray.storage import StorageSettings

DEEPEST = 32
"""Levels of lists and objects that a kept column may have, its values counted; JSON allows so many
that Python can't write them down again. A deeper one counts as text."""


def kept_fields(
    corpus: Sequence[Shard] | ray.data.Dataset,
    columns: CorpusColumns,
    there: pa.Schema | None,
    storage: StorageSettings = StorageSettings(),
    *,
    reject: bool = False,
) -> list[pa.Field]:
    """The kept columns with their types: the table's own, else those of each format's first shard.

    Where formats disagree, text is taken: csv has nothing else. With `reject`, a bad shard is
    passed over for the next of its format.

    Raises:
        SettingsError: a name that the table needs for itself.
        CorpusError: a shard that was looked at can't be read or lacks a column.
    """
    for name in columns.kept:
        if name in RESERVED:
            raise SettingsError(
                f"--keep_columns {name}: the table needs this name for itself; rename the column in"
                f" the corpus (taken: {', '.join(sorted(RESERVED))})"
            )
    if not columns.kept:
        return []
    if there is not None and all(name in there.names for name in columns.kept):
        return [pa.field(name, there.field(name).type) for name in columns.kept]
    if not isinstance(corpus, Sequence):
        seen = [_dataset_types(corpus, columns)]
    else:
        forms = dict.fromkeys(shard_format(shard.path) for shard in corpus)
        seen = [
            _types_of_first(
                [shard for shard in corpus if shard_format(shard.path) == form][
                    : BAD_FOR_A_LOOK if reject else 1
                ],
                columns,
                storage,
            )
            for form in forms
        ]
    out = []
    for name in columns.kept:
        kinds = [types[name] for types in seen if not pa.types.is_null(types[name])]
        # Not a set: types that are equal may have different hashes (list<item>, list<element>).
        agree = kinds and all(kind == kinds[0] for kind in kinds)
        out.append(pa.field(name, kinds[0] if agree else pa.string()))
    return out


def _dataset_types(dataset: ray.data.Dataset, columns: CorpusColumns) -> dict[str, pa.DataType]:
    schema = dataset.take_batch(1, batch_format="pyarrow").schema
    check_columns("the dataset", columns.all, schema.names)
    return {name: _stored(schema.field(name).type) for name in columns.kept}


def _types_of_first(
    shards: Sequence[Shard], columns: CorpusColumns, storage: StorageSettings
) -> dict[str, pa.DataType]:
    """The types in the first of these shards that isn't bad."""
    fault: BadShard | None = None
    for shard in shards:
        try:
            return _first_types(shard, columns, storage)
        except BadShard as error:
            fault = fault or error
    assert fault is not None, "a format comes from a shard"
    raise fault


def _first_types(
    shard: Shard, columns: CorpusColumns, storage: StorageSettings
) -> dict[str, pa.DataType]:
    form, compression = format_of(shard.path)
    with reading(shard.path, form, storage) as file:
        types = FORMATS[form].types(OpenShard(shard.path, file, shard.bytes, compression), columns)
    return {name: _stored(types[name]) for name in columns.kept}


def _stored(kind: pa.DataType) -> pa.DataType:
    """What a column becomes in the table: dictionaries and wide strings plain, deep ones text."""
    if pa.types.is_dictionary(kind):
        return _stored(kind.value_type)
    return pa.string() if is_text(kind) or _deep(kind) else kind


def _deep(kind: pa.DataType, left: int = DEEPEST) -> bool:
    below = [kind.field(i).type for i in range(kind.num_fields)]
    return left == 0 or any(_deep(one, left - 1) for one in below)
