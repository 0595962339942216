"""A run in another process that holds a table's lock, to be paused or killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from stella_ray.storage import StorageSettings

LEASE = 2.0
"""Of this process's locks, in seconds; another run's is half of it."""

RUN = """
import json, sys, time
from stella_ray.errors import TableError
from stella_ray.storage import StorageSettings
from stella_ray.table.lock import locked
uri, holder, on_busy, lease, storage = json.loads(sys.argv[1])
def say(text):
    print(text, flush=True)
say("ready")
sys.stdin.readline()
try:
    with locked(uri, holder=holder, on_busy=on_busy, lease_seconds=lease, poll_seconds=0.1,
                storage=StorageSettings(**storage)) as lock:
        say("locked")
        for line in sys.stdin:
            lock.assure()
            say("assured")
except TableError as error:
    say(f"refused: {error}")
"""


class Run:
    """Another process that takes the lock when told to, and asks for it at every `assure`."""

    def __init__(self, uri: str, storage: StorageSettings, holder: str, on_busy: str) -> None:
        told = json.dumps([uri, holder, on_busy, LEASE / 2, asdict(storage)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, told], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert self.hear() == "ready"

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        self.tell()
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def run(
    uri: str, storage: StorageSettings, holder: str = "other", on_busy: str = "fail"
) -> Iterator[Run]:
    other = Run(uri, storage, holder, on_busy)
    try:
        yield other
    finally:
        other.end()
