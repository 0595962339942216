"""Answers at rest: a file for each finished window, there whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stella_ray.errors import IncompleteRun, SettingsError
from stella_ray.learn.asking import PROMPT_VERSION
from stella_ray.learn.folders import local_folder
from stella_ray.pipeline.endpoint import Answer

MARK = "synthesis.json"
"""Says that a folder is of jobs/synthesize.py."""

_OWN = [field.name for field in dataclasses.fields(Answer)]


@contextmanager
def synthesis_folder(out: str) -> Iterator[Path]:
    """The folder of answers and pairs, made where it isn't there, for this run alone.

    Raises:
        SettingsError: it is something else's, another run is at work in it, or it can't be written.
    """
    folder = local_folder(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise SettingsError(
            f"--out {folder} is there and isn't of jobs/synthesize.py (it has no {MARK}); name"
            " another or remove it"
        )
    try:
        (folder / "answers").mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text('{"made_by": "jobs/synthesize.py"}\n', encoding="utf-8")
        lock = FileLock(folder / ".lock", thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(
            f"--out {folder}: another run is at work there; wait for its end or name another"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"--out {folder} can't be written ({error}); check its rights"
        ) from None
    try:
        yield folder
    finally:
        lock.release()


class AnswerFiles:
    """All answers of a folder, whatever model or prompt they are of, by their request's key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "answers"
        self.known: dict[str, Answer] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                told = json.loads(line)
                self.known[told["key"]] = Answer(**{name: told[name] for name in _OWN})

    def add(self, answers: Sequence[Answer], model: str) -> None:
        """Write the answers of a window into a file that their requests' keys name."""
        given = [answer for answer in answers if answer.raw is not None]
        if not given:
            return
        name = hashlib.sha256("".join(sorted(a.key for a in given)).encode()).hexdigest()[:32]
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        more = {"model": model, "prompt_version": PROMPT_VERSION, "answered_at": now}
        write_lines(self.folder / f"{name}.jsonl", [dataclasses.asdict(a) | more for a in given])
        self.known |= {answer.key: answer for answer in given}

    def tokens(self) -> tuple[int, int]:
        """Of prompts and of answers, over all runs in this folder."""
        all_of = self.known.values()
        return sum(a.prompt_tokens for a in all_of), sum(a.completion_tokens for a in all_of)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines; the file is there whole or not at all.

    Raises:
        IncompleteRun: the disk is full, say.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        part.replace(path)
    except OSError as error:
        raise IncompleteRun(
            f"{path}: can't be written ({error}); make room, then run again: it goes on"
        ) from None
