"""Files of any storage by URI: local folders today, everything fsspec reads by the same calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec

from stella_ray.errors import SettingsError


def absolute(path: str) -> str:
    """A URI as it is; a local path made absolute, `~` included."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path on it.

    Raises:
        SettingsError: no such kind of storage, or the package for it is missing.
    """
    try:
        return fsspec.core.url_to_fs(uri)  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{uri}: this storage can't be read ({error})") from None


def write_json(uri: str, value: Any) -> None:
    """Write `value` to `uri` as JSON; on a local disk it appears whole or not at all."""
    store, path = filesystem(uri)
    store.makedirs(store._parent(path), exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if "://" in uri:
        store.pipe_file(path, text.encode())
    else:
        part = Path(f"{path}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
