"""One run at a time on one table: a lock file beside it on a disk, a lease beside it on S3.

On a disk the system gives a dead run's lock back at once. On S3 a run that holds the lock renews
its lease every third of it; a lease that wasn't renewed may be taken over. Every step there is one
conditional PUT, of which S3 lets one succeed, and whether a lease has run out is judged by S3's
clock alone (the object's Last-Modified against the Date of the same answer).

The lease is no fence: a run that is paused just between `assure` and its commit, for longer than
the rest of its lease, still commits. Lance's own conditional PUT then keeps both commits whole.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from stella_ray.errors import TableError
from stella_ray.storage import StorageSettings, filesystem
from stella_ray.storage_faults import storage_errors, table_folder

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0


class TableLock(Protocol):
    """The right to write to a table."""

    def assure(self) -> None:
        """Make sure that the lock is still ours, for the commit that follows.

        Raises:
            TableError: it was lost, or S3 can't be asked.
        """


@contextmanager
def locked(
    uri: str,
    *,
    holder: str,
    storage: StorageSettings,
    on_busy: Literal["wait", "fail"],
    lease_seconds: float = 60.0,
    poll_seconds: float = 5.0,
) -> Iterator[TableLock]:
    """Hold the lock of the table at `uri`, which is DIR/NAME.lock beside DIR/NAME.lance.

    Args:
        uri: the table, which need not be there yet.
        holder: what others are told, as a run's id.
        storage: where S3 is.
        on_busy: wait until another run ends, or fail.
        lease_seconds: on S3, how long a dead run's lock stays.
        poll_seconds: between two looks while waiting.

    Raises:
        SettingsError: neither a disk nor S3.
        TableError: another run holds it and on_busy is fail; or it can't be written.
    """
    place = uri.rstrip("/").removesuffix(".lance") + ".lock"
    lock: _FileLock | _Lease
    if table_folder(uri) is None:
        lock = _Lease(uri, place, _Holder.here(holder, lease_seconds), storage)
    else:
        lock = _FileLock(uri, Path(place.removeprefix("file://")), _Holder.here(holder, 0))
    _take(uri, lock.take, on_busy, poll_seconds)
    try:
        yield lock
    finally:
        lock.release()


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock, as it is written in it."""

    holder: str
    host: str
    pid: int
    since: str
    lease_seconds: float
    token: str = ""
    # Otherwise a renewed lease would have the ETag of the one before, and could be taken over by
    # one who saw that one run out.
    renewals: int = 0

    @classmethod
    def here(cls, holder: str, lease_seconds: float) -> _Holder:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        token = uuid.uuid4().hex
        return cls(holder, socket.gethostname(), os.getpid(), since, lease_seconds, token)

    @classmethod
    def read(cls, data: bytes) -> _Holder:
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):  # not written yet, or not by us
            return cls("another run", "an unknown machine", 0, "an unknown time", 60.0)

    def written(self) -> bytes:
        return json.dumps(self.__dict__, ensure_ascii=False).encode()

    def __str__(self) -> str:
        return f"{self.holder} (process {self.pid} on {self.host}, since {self.since})"


def _take(
    uri: str, take: Callable[[], _Holder | None], on_busy: Literal["wait", "fail"], poll: float
) -> None:
    told = float("-inf")
    while (other := take()) is not None:
        dead = (
            f"; if that run is dead, its lock expires after {other.lease_seconds:g} s"
            if other.lease_seconds
            else ""
        )
        if on_busy == "fail":
            raise TableError(
                f"{uri}: {other} is writing to this table; run again when it has ended, or with"
                f" --on_busy wait{dead}"
            )
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            log.info("%s: waiting for %s, which is writing to this table%s", uri, other, dead)
            told = time.monotonic()
        time.sleep(poll)


class _FileLock:
    """A lock on a disk; the file stays, since deleting it would let two runs hold it."""

    def __init__(self, uri: str, path: Path, me: _Holder) -> None:
        self.uri, self.path, self.me = uri, path, me
        self._lock = FileLock(path, thread_local=False)

    def take(self) -> _Holder | None:
        """None when it's ours now, else who has it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self.path.write_bytes(self.me.written())
        except Timeout:
            return replace(_Holder.read(self.path.read_bytes()), lease_seconds=0)
        except OSError as error:
            raise TableError(f"{self.uri}: can't be locked ({error})") from None
        self._inode = self.path.stat().st_ino
        return None

    def assure(self) -> None:
        try:
            same = self.path.stat().st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise TableError(
                f"{self.uri}: the lock file {self.path} was deleted or replaced while this run held"
                " it; nothing more is committed, run again"
            )

    def release(self) -> None:
        with suppress(OSError):
            os.truncate(self.path, 0)
        self._lock.release()


class _Lease:
    """A lock on S3, renewed by a thread of its own."""

    def __init__(self, uri: str, place: str, me: _Holder, storage: StorageSettings) -> None:
        self.uri, self.me, self.storage = uri, me, storage
        self._patient, self._path = filesystem(place, storage)
        # A try to renew that took as long as any other request would outlast the lease.
        hasty = replace(storage, retry_seconds=max(6, int(me.lease_seconds / 3)))
        self._hasty, _ = filesystem(place, hasty)
        self._etag = ""
        self._renewed = 0.0
        self._lost: str | None = None
        self._one_at_a_time = threading.Lock()
        self._over = threading.Event()

    def take(self) -> _Holder | None:
        """None when it's ours now, else who has it."""
        with storage_errors(self.uri, self.storage):
            while True:
                asked, found = _now(), self._patient.read_stamped(self._path)
                condition = {"IfNoneMatch": "*"}
                if found is not None:
                    body, etag, age = found
                    other, condition = _Holder.read(body), {"IfMatch": etag}
                    # The token is ours where the answer to our own PUT was lost.
                    # One second: the store's times are whole ones.
                    if other.token != self.me.token and age <= other.lease_seconds + 1:
                        return other
                if self._put(self._patient, asked, **condition):
                    if found is not None:
                        log.warning("%s: took over the lock that %s left behind", self.uri, other)
                    threading.Thread(target=self._renew_often, daemon=True).start()
                    return None
                # Another was quicker, or so were we, with a try whose answer was lost.
                time.sleep(random.uniform(0, 0.2))

    def assure(self) -> None:
        with self._one_at_a_time, storage_errors(self.uri, self.storage):
            if _now() - self._renewed > self.me.lease_seconds / 3:
                self._renew(self._patient)
        if self._lost is not None:
            raise TableError(
                f"{self.uri}: this run lost the table's lock to {self._lost}, after it had been"
                f" paused or cut off from S3 for more than {self.me.lease_seconds:g} s; nothing"
                " more is committed, run again"
            )

    def release(self) -> None:
        self._over.set()
        try:
            with self._one_at_a_time:
                # Once more, as a proof that what is deleted is ours.
                self._renew(self._hasty)
                if self._lost is None:
                    self._hasty.rm_file(self._path)
        except Exception as error:
            log.warning(
                "%s: the lock couldn't be given back (%s) and expires after %g s",
                self.uri, type(error).__name__, self.me.lease_seconds,
            )  # fmt: skip

    def _renew_often(self) -> None:
        while not self._over.wait(self.me.lease_seconds / 3):
            try:
                with self._one_at_a_time:
                    if not self._over.is_set():
                        self._renew(self._hasty)
            except Exception as error:
                # Not lost yet: nobody can take it over before S3 answers again.
                log.warning(
                    "%s: the lock wasn't renewed (%s); trying again",
                    self.uri, type(error).__name__,
                )  # fmt: skip

    def _renew(self, store: Any) -> None:
        for _ in range(3):
            if self._lost is not None or self._put(store, _now(), IfMatch=self._etag):
                return
            found = store.read_stamped(self._path)
            other = _Holder.read(found[0]) if found else None
            if found is None or other is None or other.token != self.me.token:
                self._lost = str(other or "a run that has ended")
            else:
                # Written by a try of ours whose answer was lost.
                self._etag = found[1]

    def _put(self, store: Any, asked: float, **condition: str) -> bool:
        self.me = replace(self.me, renewals=self.me.renewals + 1)
        etag = store.put_if(self._path, self.me.written(), **condition)
        if etag is not None:
            self._etag, self._renewed = etag, asked
        return etag is not None


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
