"""What workers do with a Lance table: write fragments that nobody sees yet, and read old rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments

from stella_ray.errors import StellaError, TableError
from stella_ray.storage import StorageSettings, lance_options

ROWS_PER_TAKE = 8_192

_PLACE_IN_SOURCE = re.compile(r",? ?\S+\.rs:\d+:\d+")


def reason(error: Exception) -> str:
    """The first line of Lance's own words, without the places in its source."""
    return _PLACE_IN_SOURCE.sub("", str(error).strip().split("\n")[0])[:300]


@contextmanager
def lance_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn Lance's errors into one line.

    Raises:
        TableError: what was being done, to which table, and the first line of Lance's own words.
    """
    try:
        yield
    except StellaError:
        raise
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise TableError(f"{uri}: {doing} failed: {reason(error)}") from error


def write_rows(
    block: pa.Table, uri: str, storage: StorageSettings = StorageSettings()
) -> list[str]:
    """Write rows of the table's schema as fragments that a commit will add; runs on a worker.

    Returns:
        One JSON text for each fragment, a few hundred bytes.
    """
    with lance_errors(uri, "writing rows"):
        fragments = write_fragments(
            block,
            uri,
            mode="append",
            schema=block.schema,
            storage_options=lance_options(uri, storage),
        )
    return [json.dumps(fragment.to_json()) for fragment in fragments]


def rows_at(
    uri: str,
    version: int,
    addresses: np.ndarray,
    columns: Sequence[str],
    storage: StorageSettings = StorageSettings(),
) -> pa.Table:
    """Read the rows at these addresses, in their order; runs on a worker."""
    with lance_errors(uri, "reading rows"):
        dataset = lance.dataset(uri, version=version, storage_options=lance_options(uri, storage))
        parts = [
            dataset._take_rows(
                addresses[start : start + ROWS_PER_TAKE].tolist(), columns=list(columns)
            )
            for start in range(0, max(1, len(addresses)), ROWS_PER_TAKE)
        ]
    return pa.concat_tables(parts)
