"""What workers do with a Lance table: write fragments that nobody sees yet, and read old rows."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments

from stella_ray.errors import StellaError, TableError
from stella_ray.storage import StorageSettings, is_s3, lance_options
from stella_ray.storage_faults import explain, without_secrets

ROWS_PER_TAKE = 8_192

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_REFUSED = re.compile(r"\b(400|401|403|404|409|412)\b|AccessDenied|NoSuch|Invalid|Expired|Skewed")

_PLACE_IN_SOURCE = re.compile(r",? ?\S+\.rs:\d+:\d+")


def reason(error: Exception) -> str:
    """The first line of Lance's own words, without the places in its source."""
    first = without_secrets(str(error)).strip().split("\n")[0]
    return _PLACE_IN_SOURCE.sub("", first)[:300]


@contextmanager
def lance_errors(
    uri: str, doing: str, storage: StorageSettings = StorageSettings()
) -> Iterator[None]:
    """Turn Lance's errors into one line; S3's refusals into what they mean.

    Raises:
        TableError: what was being done, to which table, and the first line of Lance's own words.
    """
    try:
        yield
    except StellaError:
        raise
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        if line := explain(error, uri, storage):
            raise TableError(f"{line} ({doing})") from error
        raise TableError(f"{uri}: {doing} failed: {reason(error)}") from error


def tried(uri: str, storage: StorageSettings, call: Callable[[], Result]) -> Result:
    """Call again while S3 drops connections, for `retry_seconds` at most.

    Lance's object store does so itself where a request may be repeated blindly. What it may not
    repeat (the start of a large upload, a conditional write) fails at the first reset; a whole
    operation that adds nothing visible, or that looks first, may.
    """
    until, wait = time.monotonic() + storage.retry_seconds, 0.5
    while True:
        try:
            return call()
        except (OSError, ValueError, RuntimeError, TableError) as error:
            if not dropped(uri, error) or time.monotonic() > until:
                raise
            log.warning("%s: trying again after %s", uri, reason(error))
            time.sleep(wait)
            wait = min(5.0, 2 * wait)


def dropped(uri: str, error: Exception) -> bool:
    """Whether S3 failed to do what it was asked, rather than refused it."""
    words = str(error.__cause__ if isinstance(error, TableError) else error)
    return is_s3(uri) and "LanceError(IO)" in words and not _REFUSED.search(words)


def write_rows(
    block: pa.Table, uri: str, storage: StorageSettings = StorageSettings()
) -> list[str]:
    """Write rows of the table's schema as fragments that a commit will add; runs on a worker.

    Returns:
        One JSON text for each fragment, a few hundred bytes.
    """
    with lance_errors(uri, "writing rows", storage):
        fragments = tried(
            uri,
            storage,
            lambda: write_fragments(
                block,
                uri,
                mode="append",
                schema=block.schema,
                storage_options=lance_options(uri, storage),
            ),
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
    with lance_errors(uri, "reading rows", storage):
        dataset = lance.dataset(uri, version=version, storage_options=lance_options(uri, storage))
        parts = [
            dataset._take_rows(
                addresses[start : start + ROWS_PER_TAKE].tolist(), columns=list(columns)
            )
            for start in range(0, max(1, len(addresses)), ROWS_PER_TAKE)
        ]
    return pa.concat_tables(parts)
