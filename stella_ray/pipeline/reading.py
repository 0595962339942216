"""A shard's bytes, with the store's faults told apart from the shard's."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from stella_ray.errors import BadShard, CorpusError, StellaError
from stella_ray.storage import StorageSettings, filesystem, is_s3
from stella_ray.storage_faults import storage_errors

READ_BUFFER = 1 << 20

WHOLE = 8 << 20
"""Bytes up to which a shard on S3 is fetched in one request, without asking for its size first: of
small shards half of the requests, and of the time."""


class StoreFile(io.RawIOBase):
    """A file of a store, whose own errors are told apart from those of a parser.

    Arrow and gzip raise OSError for damaged data as a store does for a lost connection.
    """

    def __init__(self, file: Any, path: str, storage: StorageSettings) -> None:
        self._file = file
        self._path = path
        self._storage = storage

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`."""
        try:
            with storage_errors(self._path, self._storage, CorpusError):
                count: int = self._file.readinto(buffer)
        except (StellaError, FileNotFoundError):
            raise
        except Exception as error:
            raise CorpusError(
                f"{self._path}: its store failed while it was read"
                f" ({type(error).__name__}: {' '.join(str(error).split())[:200]}); run again"
            ) from error
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file."""
        place: int = self._file.seek(offset, whence)
        return place

    def tell(self) -> int:
        """The place in the file."""
        place: int = self._file.tell()
        return place

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the file below too."""
        if not self.closed:
            self._file.close()
        super().close()


@dataclass(frozen=True)
class OpenShard:
    """A shard while it is read.

    Attributes:
        path: what messages call it.
        file: its bytes, as they are stored.
        bytes: how many.
        compression: gzip, zstd or None, by its name.
    """

    path: str
    file: IO[bytes]
    bytes: int
    compression: str | None = None

    def position(self) -> int:
        """Bytes read so far; all of them at the end, where Arrow's decompression closed it."""
        return self.bytes if self.file.closed else self.file.tell()


@contextmanager
def reading(
    path: str, form: str, storage: StorageSettings = StorageSettings(), size: int | None = None
) -> Iterator[IO[bytes]]:
    """Open a shard; whatever goes wrong while it is read names it.

    Args:
        path: the shard.
        form: its format, for the error.
        storage: where S3 is.
        size: bytes, where they are known; saves a question to the store.

    Raises:
        CorpusError: the store doesn't give it.
        BadShard: the shard is gone, unreadable or not of its format.
    """
    store, inner = filesystem(path, storage)
    known = {"size": size} if size and is_s3(path) else {}
    try:
        with storage_errors(path, storage, CorpusError):
            if known and (size or 0) <= WHOLE:
                raw: Any = io.BytesIO(store.cat_file(inner, max_concurrency=1))
            else:
                raw = store.open(inner, "rb", **known)
        with io.BufferedReader(StoreFile(raw, path, storage), READ_BUFFER) as file:
            yield file
    except StellaError:
        raise
    except PermissionError as error:
        raise CorpusError(f"{path}: may not be read ({error}); check its permissions") from None
    except FileNotFoundError:
        raise BadShard(f"{path}: the shard is gone; it was there when the run began") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, UnicodeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadShard(
            f"{path}: can't be read as {form} ({reason}); expected a whole file of that format,"
            " so export it again or take it out of the corpus"
        ) from None
