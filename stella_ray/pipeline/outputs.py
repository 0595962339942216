"""Folders that a job writes: there whole or not at all, and never over somebody else's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stella_ray.errors import SettingsError


def local_folder(out: str) -> Path:
    """The folder that `out` names.

    Raises:
        SettingsError: it isn't on a disk, or is a file.
    """
    if "://" in out:
        raise SettingsError(
            f"--out {out}: expected a path on a disk; on a cluster on one that all nodes share"
        )
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file; expected a folder")
    return folder


@contextmanager
def whole_folder(out: str) -> Iterator[Path]:
    """A folder beside `out` to write into, which becomes `out` if all goes well and else goes.

    Raises:
        SettingsError: `out` is there and holds something, or can't be written.
    """
    folder = local_folder(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"--out {folder} is there and isn't empty; name another or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            yield made
            made.replace(folder)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"--out {folder} can't be written ({reason}); check room and rights"
        ) from None
