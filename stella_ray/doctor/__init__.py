"""What a machine has for the jobs, a verdict a line: `python -m stella_ray doctor`.

Every check runs what it speaks of (a kernel, a request, a conditional write), in a thread with a
deadline, because a cluster or store that is silent is what people call the doctor for.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from stella_ray import settings
from stella_ray.doctor.finding import SECONDS, Finding, brief
from stella_ray.doctor.machine import processors, room, versions
from stella_ray.doctor.services import encoder, ray_cluster, s3
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError, StellaError, one_line
from stella_ray.storage import StorageSettings

SILENT = {
    "encoder": "set HF_ENDPOINT to a hub that this machine reaches, or HF_HUB_OFFLINE=1",
    "S3": "check --storage.endpoint_url and the network to it",
    "Ray": "check RAY_ADDRESS, and that the cluster is up",
}
"""What to do about a check that got no answer."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What this machine has for the jobs: a line each, ok, note (less than it could be) or bad."""

    encoder: str = EncoderSettings.path
    """The hub id, folder or bundled name that your jobs use."""
    s3: str | None = None
    """s3://BUCKET/FOLDER of your tables: a probe is written there under conditions, and deleted."""
    storage: StorageSettings = StorageSettings()


def findings(asked: Doctor) -> Iterator[Finding]:
    """All checks side by side; one that is not done in time is a bad finding of its own."""
    address = os.environ.get("RAY_ADDRESS", "")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "processors": processors,
        "encoder": lambda: encoder(asked.encoder),
        "S3": lambda: s3(asked.s3, asked.storage),
        "Ray": lambda: ray_cluster(address),
        "room": room,
    }
    going = {name: _started(check) for name, check in checks.items()}
    end = time.monotonic() + SECONDS
    for name, one in going.items():
        # Nothing silent is asked for versions and devices; torch may take its time to be imported.
        waits = name not in ("versions", "processors", "room")
        try:
            yield from one.result(timeout=max(0.0, end - time.monotonic()) if waits else None)
        except concurrent.futures.TimeoutError:
            yield "bad", f"{name}: no answer within {SECONDS:.0f} seconds; {SILENT[name]}"
        except StellaError as error:
            yield "bad", f"{name}: {error}"
        except Exception as error:
            yield "bad", f"{name}: {type(error).__name__}: {brief(error)}"


def _started(check: Callable[[], Iterator[Finding]]) -> concurrent.futures.Future[list[Finding]]:
    """Begin a check in a thread that can't keep the process from ending."""
    done: concurrent.futures.Future[list[Finding]] = concurrent.futures.Future()

    def work() -> None:
        try:
            done.set_result(list(check()))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done


def main() -> NoReturn:
    """Print the findings, and leave with 0, or 2 where any is bad."""
    asked: Any = settings.read_settings(Doctor)
    if asked.s3 is not None and not asked.s3.startswith("s3://"):
        raise SettingsError(f"--s3 {asked.s3} isn't on S3; expected s3://BUCKET/FOLDER")
    bad = 0
    for verdict, told in findings(asked):
        bad += verdict == "bad"
        sys.stdout.write(f"{verdict:5}{one_line(told)}\n")
        sys.stdout.flush()
    sys.stdout.write("all jobs can run\n" if not bad else f"{bad} to mend\n")
    sys.stdout.flush()
    os._exit(2 if bad else 0)  # a check that is still waiting would hold the interpreter
