"""What S3's refusals mean, in one line each, whichever library met them; and a first probe.

botocore and s3fs raise exceptions with S3's error code; Lance raises text that holds S3's answer,
an XML that can hold signatures and tokens too, so it must not be shown as it is.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stella_ray.errors import SettingsError, StellaError, TableError
from stella_ray.storage import StorageSettings, filesystem, is_s3

NO_CREDENTIALS, UNREACHABLE, NO_TLS = "NoCredentials", "Unreachable", "NoTLS"

_OTHER_REGION = "the bucket isn't in the region asked for; set storage.region to the bucket's own"
_REFUSALS = {
    "NoSuchBucket": "there is no bucket {bucket} {at}; check its name and storage.endpoint_url",
    "InvalidBucketName": "{bucket} can't be a bucket's name; expected 3 to 63 of a-z, 0-9, - and .",
    "InvalidAccessKeyId": "the access key is unknown {at}; check AWS_ACCESS_KEY_ID, the profile or"
    " the role, and storage.endpoint_url",
    "SignatureDoesNotMatch": "the secret key isn't the access key's {at}; check"
    " AWS_SECRET_ACCESS_KEY or the profile, and that no proxy changes the Host header",
    "AccessDenied": "these credentials may not do that {at}; expected s3:ListBucket on the bucket"
    " (its own, not someone else's) and s3:GetObject in it, and to write also s3:PutObject and"
    " s3:DeleteObject",
    "403": "access was refused {at} without a reason; check the credentials, their rights to the"
    " bucket, and this machine's clock",
    "ExpiredToken": "the session token has expired; get new credentials and run again, which goes"
    " on from what is committed",
    "InvalidToken": "the session token isn't valid {at}; check AWS_SESSION_TOKEN, which must be of"
    " the same login as the access key",
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "301": _OTHER_REGION,
    NO_CREDENTIALS: "no credentials found for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
    " AWS_PROFILE or a role on every machine of the cluster, or --storage.anonymous true",
    UNREACHABLE: "no answer from S3 {at} (refused, dropped or timed out; tried for up to"
    " {seconds} s); check storage.endpoint_url and the network",
    NO_TLS: "no TLS connection to S3 {at}; check storage.endpoint_url (http or https?) and, for a"
    " certificate of your own, AWS_CA_BUNDLE",
}
_SAME = {
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "InvalidClientTokenId": "InvalidAccessKeyId",
    "TokenRefreshRequired": "ExpiredToken",
    "ExpiredTokenException": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
    "NoCredentialsError": NO_CREDENTIALS,
    "PartialCredentialsError": NO_CREDENTIALS,
    "EndpointConnectionError": UNREACHABLE,
    "ConnectTimeoutError": UNREACHABLE,
    "ReadTimeoutError": UNREACHABLE,
    "ConnectionClosedError": UNREACHABLE,
    "ResponseStreamingError": UNREACHABLE,
    "ClientPayloadError": UNREACHABLE,
    "HTTPClientError": UNREACHABLE,
    "FSTimeoutError": UNREACHABLE,
    "ConnectionError": UNREACHABLE,
    "TimeoutError": UNREACHABLE,
    "SSLError": NO_TLS,
}  # fmt: skip
_LIBRARIES = ("botocore", "aiohttp", "fsspec", "asyncio", "builtins")
_BUSY = re.compile(
    "SlowDown|ServiceUnavailable|InternalError|RequestTimeout|Throttl|TooManyRequests|^5..$|^429$"
)
# Of Lance's text, in this order: S3's own code says more than the status it came with.
_TOLD = {
    r"<Code>(\w+)</Code>": None,
    r"Failed to get AWS credentials|CredentialsNotLoaded": NO_CREDENTIALS,
    r"redirect without LOCATION": "PermanentRedirect",
    r"non-2xx status code: (\d{3})": None,
    r"error sending request|request or response body error": UNREACHABLE,
}


def explain(error: BaseException, uri: str, storage: StorageSettings) -> str | None:
    """What S3's refusal at `uri` means and what to do, in one line without any secret.

    Args:
        error: what s3fs, botocore or Lance raised, at any depth of `__cause__`.
        uri: what it was about.
        storage: where S3 is.

    Returns:
        None where it isn't S3's refusal: a bug, or a missing object.
    """
    own = storage.resolved()
    code, told = _code(error)
    if code is None or not is_s3(uri):
        return None
    at = f"at {own.endpoint_url}" if own.endpoint_url else "at AWS"
    if code == "RequestTimeTooSkewed":
        return f"{uri}: {_clock(told)}"
    if _BUSY.search(code):
        return (
            f"{uri}: S3 {at} was overloaded or out of order ({code}) for about"
            f" {own.retry_seconds} s; run again later, or raise storage.retry_seconds"
        )
    if code not in _REFUSALS:
        return None
    bucket = repr(urlsplit(uri).netloc)
    return f"{uri}: " + _REFUSALS[code].format(bucket=bucket, at=at, seconds=own.retry_seconds)


@contextmanager
def storage_errors(
    uri: str, storage: StorageSettings, kind: type[StellaError] = TableError
) -> Iterator[None]:
    """Turn S3's refusals into `kind` in one line; all other exceptions pass as they are.

    Raises:
        StellaError: of that kind: no such bucket, wrong key, no right, no answer, …
    """
    try:
        yield
    except StellaError:
        raise
    except Exception as error:
        if line := explain(error, uri, storage):
            raise kind(line) from error
        raise


def check_store(uri: str, storage: StorageSettings) -> None:
    """Check that a table can live at `uri`; writes a probe beside it, and deletes it.

    Raises:
        SettingsError: neither a disk nor S3.
        TableError: it can't be written, or the store ignores conditions, without which two commits
            at once could both succeed, and one of them lose its rows.
    """
    folder = table_folder(uri)
    if folder is None:
        with storage_errors(uri, storage):
            _probe(uri, storage)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise TableError(f"{uri}: its folder can't be written ({error})") from None


def table_folder(uri: str) -> Path | None:
    """The folder of a table on a disk; None on S3.

    Raises:
        SettingsError: neither.
    """
    if is_s3(uri):
        return None
    if "://" in uri and not uri.startswith("file://"):
        raise SettingsError(
            f"{uri}: a table can't live there; expected a path on a local or shared disk, or s3://…"
        )
    return Path(uri.removeprefix("file://")).parent


def _probe(uri: str, storage: StorageSettings) -> None:
    store, path = filesystem(uri, storage)
    bucket, _, key = path.partition("/")
    key = f"{key}.probe-{uuid.uuid4().hex}"
    # First, since some stores make a missing bucket when they're asked to write.
    store.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    ignored = None
    try:
        store.put_if(f"{bucket}/{key}", b"1", IfNoneMatch="*")
        if store.put_if(f"{bucket}/{key}", b"2", IfNoneMatch="*"):
            ignored = "If-None-Match"
        elif store.put_if(f"{bucket}/{key}", b"3", IfMatch=f'"{"0" * 32}"'):
            ignored = "If-Match"
    except OSError as error:
        if _code(error)[0] != "NotImplemented":
            raise
        ignored = "If-None-Match and If-Match"
    finally:
        store.call_s3("delete_object", Bucket=bucket, Key=key)
    if ignored:
        raise TableError(
            f"{uri}: this S3 doesn't heed {ignored}, so that two writers could lose rows; expected"
            " conditional PUTs, as AWS, MinIO, Ceph and SeaweedFS have them in their newer versions"
        )


def without_secrets(text: str) -> str:
    """A library's words without S3's XML, of which code and message stay, and without secrets."""
    told = r"\1: \2" if "<Message>" in text else r"\1"
    text = re.sub(r"<Code>(\w*)</Code>(?:\s*<Message>([^<]*)</Message>)?", told, text)
    text = re.sub(r"<([\w-]+)>[^<]*</\1>|<[^>]*>", "", text)
    text = re.sub(r"(?i)(X-Amz-(?:Signature|Security-Token|Credential)=)[^&\s\"']+", r"\1…", text)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "…")
    return text


def _code(error: BaseException | None) -> tuple[str | None, dict[str, Any]]:
    """S3's error code, or ours where there was no answer, and what S3 told with it."""
    text, chain = str(error), list(_chain(error))
    # Before all names: s3fs makes of S3's code RequestTimeout a TimeoutError, for one.
    for error in chain:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            told = dict(answer["Error"])
            told["Date"] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
            return _same(str(told.get("Code"))), told
    for kind in (kind for error in chain for kind in type(error).__mro__):
        if kind.__name__ in _SAME and kind.__module__.startswith(_LIBRARIES):
            return _SAME[kind.__name__], {}
    for pattern, code in _TOLD.items():
        if found := re.search(pattern, text):
            return _same(code or found[1]), dict(re.findall(r"<(\w+Time)>([^<]*)<", text))
    return None, {}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _same(code: str) -> str:
    return _SAME.get(code, code)


def _clock(told: dict[str, Any]) -> str:
    here, there = _time(told.get("RequestTime")), _time(told.get("ServerTime") or told.get("Date"))
    seconds = ((here or datetime.now(timezone.utc)) - there).total_seconds() if there else 0
    if abs(seconds) < 300:  # S3 bears that much, so it was set right in the meantime
        return "this machine's clock was off from S3's by too much; set it right (NTP)"
    hours, minutes = divmod(max(1, round(abs(seconds) / 60)), 60)
    way = "ahead of" if seconds > 0 else "behind"
    return f"this machine's clock is {hours} h {minutes} min {way} S3's; set it right (NTP)"


def _time(text: str | None) -> datetime | None:
    """One of the three forms that S3 and its like write times in."""
    if not text:
        return None
    for form in ("%Y%m%dT%H%M%SZ", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    try:
        return parsedate_to_datetime(text).astimezone(timezone.utc)
    except ValueError:
        return None
