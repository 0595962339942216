"""Where files lie: a local disk or S3, by one setting for every library that reads or writes there.

Credentials are no settings: each process finds its own by AWS's usual chain (environment, profile,
web identity, instance role), so that none of them is ever in a command line, a log or a report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import fsspec

from stella_ray.errors import SettingsError

READ_BLOCK = 8 << 20
"""Bytes of one read request; s3fs's own 50 MiB would be the largest thing in a reader's memory."""


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Where S3 is and how patient to be with it; credentials come from AWS's usual chain."""

    endpoint_url: str | None = None
    """S3's address where it isn't AWS's own, as http://HOST:PORT. Default: AWS_ENDPOINT_URL."""
    region: str | None = None
    """S3's region. Default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1 at an endpoint_url."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Bucket in the path or in the host's name; auto: path at an endpoint_url, else virtual."""
    anonymous: bool = False
    """Ask without credentials, for public buckets."""
    retry_seconds: int = 180
    """Seconds for which a request that S3 fails, throttles or drops is tried again."""
    timeout_seconds: int = 30
    """Seconds after which a request that S3 doesn't answer counts as dropped."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("retry_seconds", "timeout_seconds"):
            if getattr(self, name) < 1:
                raise SettingsError(
                    f"storage.{name} {getattr(self, name)} is too small; expected 1 or more"
                )
        if self.endpoint_url is not None:
            parts = urlsplit(self.endpoint_url)
            if parts.username or parts.password:
                raise SettingsError(
                    "storage.endpoint_url holds credentials; leave them out, and set"
                    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile instead"
                )
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise SettingsError(
                    f"storage.endpoint_url {self.endpoint_url} isn't an address; expected"
                    " http://HOST:PORT or https://HOST"
                )

    def resolved(self) -> StorageSettings:
        """With what this process's environment says filled in, so that workers need not know it."""
        asked = os.environ.get
        endpoint = self.endpoint_url or asked("AWS_ENDPOINT_URL_S3") or asked("AWS_ENDPOINT_URL")
        region = self.region or asked("AWS_REGION") or asked("AWS_DEFAULT_REGION")
        if endpoint:
            region = region or "us-east-1"
        return dataclasses.replace(self, endpoint_url=endpoint, region=region)

    def for_fsspec(self) -> dict[str, Any]:
        """The same in s3fs's words."""
        own = self.resolved()
        # botocore's waits double up to 20 s: so many attempts last about retry_seconds.
        attempts = 6 + own.retry_seconds // 20
        return {
            "anon": own.anonymous,
            "endpoint_url": own.endpoint_url,
            "client_kwargs": {"region_name": own.region} if own.region else {},
            "config_kwargs": {
                "s3": {"addressing_style": own._addressing()},
                "retries": {"mode": "standard", "total_max_attempts": attempts},
                "connect_timeout": min(10, own.timeout_seconds),
                "read_timeout": own.timeout_seconds,
            },
            "default_block_size": READ_BLOCK,
            # A listing that is kept would be last night's in a process that lives for several.
            "use_listings_cache": False,
        }

    def for_lance(self) -> dict[str, str]:
        """The same in the words of Lance's object store."""
        own = self.resolved()
        out = {
            "virtual_hosted_style_request": str(own._addressing() == "virtual").lower(),
            "client_max_retries": str(6 + own.retry_seconds // 15),
            "client_retry_timeout": str(own.retry_seconds),
            "timeout": f"{own.timeout_seconds}s",
            "connect_timeout": f"{min(10, own.timeout_seconds)}s",
        }
        if own.endpoint_url:
            out |= {"aws_endpoint": own.endpoint_url}
            out |= {"allow_http": "true"} if own.endpoint_url.startswith("http://") else {}
        if own.region:
            out |= {"aws_region": own.region}
        if own.anonymous:
            out |= {"aws_skip_signature": "true"}
        return out

    def _addressing(self) -> str:
        if self.addressing == "auto":
            return "path" if self.endpoint_url else "virtual"
        return self.addressing


def is_s3(uri: str) -> bool:
    """Whether a URI means S3."""
    return uri.startswith(("s3://", "s3a://"))


def lance_options(uri: str, storage: StorageSettings) -> dict[str, str] | None:
    """The options that Lance needs for `uri`; None on a local disk."""
    return storage.for_lance() if is_s3(uri) else None


def absolute(path: str) -> str:
    """A URI as it is; a local path made absolute, `~` included."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def filesystem(uri: str, storage: StorageSettings = StorageSettings()) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path on it.

    Raises:
        SettingsError: no such kind of storage, the package for it is missing, or a URI that holds
            credentials.
    """
    if re.match(r"\w+://[^/]*@", uri):
        scheme, _, rest = uri.partition("://")
        raise SettingsError(
            f"{scheme}://…@{rest.rpartition('@')[2]}: credentials in a URI end up in logs; leave"
            " them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile instead"
        )
    try:
        options = storage.for_fsspec() if is_s3(uri) else {}
        return fsspec.core.url_to_fs(uri, **options)  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{uri}: this storage can't be read ({error})") from None


def write_json(uri: str, value: Any, storage: StorageSettings = StorageSettings()) -> None:
    """Write `value` to `uri` as JSON; it appears whole or not at all."""
    store, path = filesystem(uri, storage)
    store.makedirs(store._parent(path), exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if "://" in uri:
        store.pipe_file(path, text.encode())
    else:
        part = Path(f"{path}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def read_json(uri: str, storage: StorageSettings = StorageSettings()) -> Any:
    """What `write_json` wrote; None where there is nothing."""
    store, path = filesystem(uri, storage)
    try:
        return json.loads(store.cat_file(path))
    except FileNotFoundError:
        return None


from contextlib import contextmanager
@contextmanager
def storage_errors(uri, doing, kind):
    yield
def check_store(uri, storage):
    pass
