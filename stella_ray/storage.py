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

LANCE_ROUNDS = 6
"""Times that Lance lists again, which no setting changes."""

READ_BLOCK = 8 << 20
"""Bytes of one read request; s3fs's own 50 MiB would be the largest thing in a reader's memory."""


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Where S3 is and how patient to be with it; credentials come from AWS's usual chain."""

    endpoint_url: str | None = None
    """S3's address where it isn't AWS's own, as http://HOST:PORT. Default: AWS_ENDPOINT_URL_S3 or
    AWS_ENDPOINT_URL, else the profile's."""
    region: str | None = None
    """S3's region. Default: AWS_REGION or AWS_DEFAULT_REGION, else the profile's, else us-east-1 at
    an endpoint_url."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Bucket in the path or in the host's name; auto: path at an endpoint_url, else virtual."""
    anonymous: bool = False
    """Ask without credentials, for public buckets."""
    retry_seconds: int = 300
    """Seconds for which a request that S3 fails, throttles or drops is tried again; at least 6 are
    spent on Lance's."""
    timeout_seconds: int = 30
    """Seconds after which a request that S3 doesn't answer counts as dropped; at most a tenth of
    retry_seconds, so that there are tries enough."""

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
        asked, profile = os.environ.get, _profile()
        endpoint = self.endpoint_url or asked("AWS_ENDPOINT_URL_S3") or asked("AWS_ENDPOINT_URL")
        endpoint = endpoint or profile.get("endpoint_url")
        region = self.region or asked("AWS_REGION") or asked("AWS_DEFAULT_REGION")
        region = region or profile.get("region") or ("us-east-1" if endpoint else None)
        return dataclasses.replace(self, endpoint_url=endpoint, region=region)

    def for_fsspec(self) -> dict[str, Any]:
        """The same in the words of `PatientS3FileSystem`, which are s3fs's and retry_seconds."""
        own = self.resolved()
        config: dict[str, Any] = {
            "s3": {"addressing_style": own._addressing()},
            # PatientS3FileSystem tries again; tries of botocore's inside would multiply.
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "connect_timeout": own._timeout(),
            "read_timeout": own._timeout(),
        }
        if own.endpoint_url:
            # Stores that aren't AWS's may not know the checksums that botocore adds unasked.
            config |= {
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            }
        return {
            "anon": own.anonymous,
            "endpoint_url": own.endpoint_url,
            "client_kwargs": {"region_name": own.region} if own.region else {},
            "config_kwargs": config,
            "retry_seconds": own.retry_seconds,
            "default_block_size": READ_BLOCK,
            # A listing that is kept would be last night's in a process that lives for several.
            "use_listings_cache": False,
        }

    def for_lance(self) -> dict[str, str]:
        """The same in the words of Lance's object store.

        Lance has three loops, one in another: its HTTP client's, ended by a time; around that one
        for throttling (lance_aimd), which all requests but listings go through; and one for
        listings, always of 6 rounds. So the throttling loop gets 6 rounds too, and each round of
        either a sixth of retry_seconds.
        """
        own = self.resolved()
        timeout = f"{round(1000 * own._timeout())}ms"
        out = {
            "virtual_hosted_style_request": str(own._addressing() == "virtual").lower(),
            "client_max_retries": "1000",
            "client_retry_timeout": str(max(1, own.retry_seconds // LANCE_ROUNDS)),
            "lance_aimd_max_retries": str(LANCE_ROUNDS - 1),
            "timeout": timeout,
            "connect_timeout": timeout,
        }
        if own.endpoint_url:
            # By both names: Lance prefers the second, which it finds in the environment as well.
            out |= {"aws_endpoint": own.endpoint_url, "aws_endpoint_url_s3": own.endpoint_url}
            out |= {"allow_http": "true"} if own.endpoint_url.startswith("http://") else {}
        if own.region:
            out |= {"aws_region": own.region}
        if own.anonymous:
            out |= {"aws_skip_signature": "true"}
        return out

    def _timeout(self) -> float:
        return min(self.timeout_seconds, max(0.6, self.retry_seconds / 10))

    def _addressing(self) -> str:
        if self.addressing == "auto":
            return "path" if self.endpoint_url else "virtual"
        return self.addressing


def _profile() -> dict[str, Any]:
    """The settings of AWS's profile; botocore is asked only where there is such a file."""
    name = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    if not Path(name).expanduser().is_file():
        return {}
    import botocore.exceptions
    import botocore.session

    try:
        return dict(botocore.session.get_session().get_scoped_config())
    except botocore.exceptions.BotoCoreError as error:
        raise SettingsError(f"{name}: {error}; check AWS_PROFILE") from None


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
        if is_s3(uri):
            # Here, since importing it takes as long as half of a job that needs no S3.
            from stella_ray.storage_s3 import PatientS3FileSystem

            store = PatientS3FileSystem(**storage.for_fsspec())
            return store, store._strip_protocol(uri)
        return fsspec.core.url_to_fs(uri)  # type: ignore[no-any-return]
    except (ValueError, ImportError) as error:
        raise SettingsError(f"{uri}: this storage can't be read ({error})") from None


def write_json(uri: str, value: Any, storage: StorageSettings = StorageSettings()) -> None:
    """Write `value` to `uri` as JSON; it appears whole or not at all."""
    write_text(uri, json.dumps(value, ensure_ascii=False, indent=2) + "\n", storage)


def write_text(uri: str, text: str, storage: StorageSettings = StorageSettings()) -> None:
    """Write `text` to `uri`; it appears whole or not at all."""
    store, path = filesystem(uri, storage)
    store.makedirs(store._parent(path), exist_ok=True)
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
