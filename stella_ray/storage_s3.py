"""s3fs with one patience: every request, its answer's body included, is tried for a set time.

s3fs and botocore each have a loop of tries of their own, that count tries, not seconds, and
multiply; neither tries again when the connection is refused or when a body breaks off in a
concurrent read. Here both are switched off and one clock decides.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import random
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as UnconnectedError,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

log = logging.getLogger(__name__)

LARGEST_BODY = 8 << 20
"""Bytes of an object that is read, and read again, as a whole; a range of any size is. A larger
object's body is handed on as it comes: `get_file` opens one only to learn its size."""

_PASSING = (
    HTTPClientError, UnconnectedError, IncompleteReadError, ResponseParserError,
    aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.TimeoutError,
)  # fmt: skip
_UNANSWERED = (BotoCoreError, aiohttp.ClientError, asyncio.TimeoutError)
_PASSING_CODES = {
    "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestThrottled",
    # Another conditional write is under way; the next try gets the true answer.
    "ConditionalRequestConflict", "OperationAborted",
}  # fmt: skip

SLOWEST_UPLOAD = 256 << 10
"""Bytes a second below which an upload counts as stuck."""


class PatientS3FileSystem(S3FileSystem):  # type: ignore[misc]
    """An `S3FileSystem` that tries each request again for `retry_seconds` before it raises.

    A try whose answer was lost may have been done: a conditional PUT that is tried again can meet
    its own first try.
    """

    retries = 1

    def __init__(self, *args: Any, retry_seconds: float = 60, **options: Any) -> None:
        super().__init__(*args, **options)
        self.retry_seconds = retry_seconds
        self._told = float("-inf")

    async def _call_s3(self, method: str, *args: Any, **options: Any) -> Any:
        began, wait = time.monotonic(), 0.1
        while True:
            try:
                return await self._try(method, *args, **options)
            except Exception as error:
                left = began + self.retry_seconds - time.monotonic()
                if left <= 0 or not _passing(error):
                    if isinstance(error, _UNANSWERED):
                        # What S3 didn't answer is an OSError, as what it did answer is.
                        raise OSError(errno.EIO, str(error) or "timed out") from error
                    raise
                self._tell(method, error, left)
                # Half of the wait by chance, so that workers that failed together don't come back
                # together; the last try is at the very end.
                await asyncio.sleep(min(left, wait * random.uniform(0.5, 1)))
                wait = min(2 * wait, 10, self.retry_seconds / 6)

    async def _try(self, method: str, *args: Any, **options: Any) -> Any:
        limit = None
        if sent := len(options.get("Body") or b""):
            # aiohttp has no time-out for sending: a peer that stops reading would stop us for good.
            quiet = self.config_kwargs.get("read_timeout", self.read_timeout)
            limit = max(quiet, min(quiet + sent / SLOWEST_UPLOAD, self.retry_seconds / 4))
        answer = await asyncio.wait_for(super()._call_s3(method, *args, **options), limit)
        if method == "get_object" and (
            re.search(r"-\d+$", options.get("Range", ""))
            or answer.get("ContentLength", 0) <= LARGEST_BODY
        ):
            body = answer["Body"]
            try:
                answer["Body"] = _Read(await body.read())
            finally:
                body.close()
        return answer

    call_s3 = sync_wrapper(_call_s3)

    def put_if(self, path: str, body: bytes, **condition: str) -> str | None:
        """Write an object on one condition, `IfNoneMatch="*"` or `IfMatch=ETAG`.

        Returns:
            Its ETag; None if the condition didn't hold, or held for a try whose answer was lost.
        """
        bucket, _, key = path.partition("/")
        try:
            done = self.call_s3("put_object", Bucket=bucket, Key=key, Body=body, **condition)
        except OSError as error:
            # A missing object is no match either.
            if error_code(error) in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                return None
            raise
        return str(done["ETag"])

    def read_stamped(self, path: str) -> tuple[bytes, str, float] | None:
        """An object, its ETag, and the seconds since it was written, by the store's own clock.

        Both of the store's times are whole seconds. None where there is no such object.
        """
        bucket, _, key = path.partition("/")
        try:
            found = self.call_s3("get_object", Bucket=bucket, Key=key)
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise
            return None
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - found["LastModified"]).total_seconds()
        return found["Body"].data, str(found["ETag"]), age

    def _tell(self, method: str, error: Exception, left: float) -> None:
        if time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            log.warning("S3 %s: %s; trying for %.0f s more", method, type(error).__name__, left)


class _Read:
    """A body that is here already."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._file = io.BytesIO(data)

    async def read(self, count: int = -1) -> bytes:
        return self._file.read(count)

    def close(self) -> None:
        pass


def error_code(error: BaseException | None) -> str | None:
    """S3's own code in an exception of s3fs or botocore."""
    while error is not None:
        if isinstance(error, ClientError):
            return str(error.response.get("Error", {}).get("Code"))
        error = error.__cause__
    return None


def _passing(error: BaseException | None) -> bool:
    """Whether the same request may well succeed a little later."""
    while error is not None:
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code")
            # 501 is a header the store doesn't know.
            return (
                code in _PASSING_CODES or status in (408, 429) or (status >= 500 and status != 501)
            )
        if isinstance(error, _PASSING):
            return not isinstance(error, SSLError)
        error = error.__cause__
    return False
