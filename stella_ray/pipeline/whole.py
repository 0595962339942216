"""A folder of results that is there whole or not at all, on a disk or on S3."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from stella_ray.errors import IncompleteRun, SettingsError, StellaError
from stella_ray.storage import StorageSettings, absolute, filesystem
from stella_ray.storage_faults import storage_errors


def check_vacant(out: str, storage: StorageSettings = StorageSettings()) -> None:
    """Check that nothing is there yet, or an empty folder.

    Raises:
        SettingsError: it's taken, or can't be asked.
    """
    uri = absolute(out)
    store, path = filesystem(uri, storage)
    with storage_errors(uri, storage, SettingsError):
        if store.isfile(path):
            raise SettingsError(f"--out {out} is a file; expected a folder that isn't there yet")
        if store.exists(path) and store.find(path):
            raise SettingsError(f"--out {out} is there and isn't empty; name another or remove it")


@contextmanager
def whole_folder(
    out: str, storage: StorageSettings = StorageSettings()
) -> Iterator[tuple[Any, str]]:
    """A filesystem and a folder on it to write into, which becomes `out` if all goes well.

    It lies beside `out`, as .NAME.RANDOM, which only a process that is killed leaves behind. A disk
    renames it; S3 has no rename, so that its objects are copied there one by one, report.json last
    by its name: killed within those seconds, it leaves some of them.

    Raises:
        SettingsError: `out` is taken.
        IncompleteRun: it can't be written.
    """
    check_vacant(out, storage)
    uri = absolute(out.rstrip("/"))
    store, path = filesystem(uri, storage)
    parent, _, name = path.rpartition("/")
    made = f"{parent}/.{name}.{secrets.token_hex(4)}"
    try:
        with storage_errors(uri, storage, IncompleteRun):
            store.makedirs(made, exist_ok=True)
            try:
                yield store, made
                _move(store, made, path)
            finally:
                if store.exists(made):
                    store.rm(made, recursive=True)
    except (StellaError, ray.exceptions.RayError):  # the latter may be an OSError too
        raise
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise IncompleteRun(f"{uri}: can't be written ({reason}); check room and rights") from None


def _move(store: Any, made: str, path: str) -> None:
    if store.protocol == "file" or "file" in store.protocol:
        Path(made).replace(path)
        return
    copied: list[str] = []
    try:
        for source in sorted(store.find(made)):
            copied.append(f"{path}/{source.removeprefix(f'{made}/')}")
            store.copy(source, copied[-1])
    except BaseException:
        for target in copied:
            if store.exists(target):
                store.rm_file(target)
        raise
