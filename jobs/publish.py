"""See which versions a table has, choose the one that readers see, or clean up.

python jobs/publish.py status --table TABLE [--json true]
python jobs/publish.py rollback --table TABLE
python jobs/publish.py promote VERSION --table TABLE [--force true]
python jobs/publish.py prune --table TABLE --keep N
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table

from stella_ray import settings
from stella_ray.errors import SettingsError
from stella_ray.storage import StorageSettings, absolute
from stella_ray.table.lock import locked
from stella_ray.table.publish import promote, rollback
from stella_ray.table.vectors import VectorTable, table_uri
from stella_ray.table.versions import VersionStatus, clean, clean_runs, status, stored_bytes


@dataclass(frozen=True, kw_only=True)
class PublishJob:
    """See which versions a table has, choose the one that readers see, or clean up."""

    action: Literal["status", "rollback", "promote", "prune"]
    """What to do; may be given as the first word. prune removes what no tag holds."""
    table: str
    """DIR/NAME, as it was embedded."""
    version: str | None = None
    """promote: a version's number or a tag; may be given as the second word."""
    keep: int | None = None
    """prune: published versions that stay; live, live-previous and your own tags always do."""
    force: bool = False
    """promote: also a version that never passed the publishing gate."""
    json: bool = False
    """status: one JSON object a version and line instead of a table for people."""
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name, action in _BELONGS_TO.items():
            given = getattr(self, name) not in (None, False)
            if given and self.action != action:
                raise SettingsError(f"--{name} belongs to {action}; {self.action} takes none")
        if self.action == "promote" and self.version is None:
            raise SettingsError("promote which version? Expected promote VERSION; see status")
        if self.action == "prune" and (self.keep is None or self.keep < 1):
            raise SettingsError(
                f"prune needs --keep, 1 or more: the published versions that stay; got {self.keep}"
            )


_BELONGS_TO = {"version": "promote", "force": "promote", "keep": "prune", "json": "status"}


def run(job: PublishJob) -> None:
    """Print the versions, move `live`, or remove what no tag holds."""
    uri = table_uri(absolute(job.table))
    if job.action == "status":
        show_status(uri, job)
    elif job.action == "rollback":
        now, before = rollback(uri, job.storage)
        print(
            f"live is version {now} again; {before} is live-previous: one more rollback undoes it"
        )
    elif job.action == "promote":
        assert job.version is not None, "PublishJob refuses that"
        now, was = promote(uri, job.version, job.storage, force=job.force)
        if was == now:
            print(f"live is version {now} already")
        else:
            print(
                f"live is version {now}"
                + ("" if was is None else f"; {was} is live-previous: rollback undoes it")
            )
    else:
        assert job.keep is not None, "PublishJob refuses that"
        VectorTable.open(uri, storage=job.storage)  # a missing table is said before it is locked
        with locked(uri, holder="prune", storage=job.storage, on_busy="fail"):
            table = VectorTable.open(uri, storage=job.storage)
            gone, folders = clean(table, job.keep), clean_runs(table)
        print(
            f"removed {gone.versions:,} versions and {folders:,} reports,"
            f" {_size(gone.bytes)}; {_size(stored_bytes(table))} stay"
        )


def show_status(uri: str, job: PublishJob) -> None:
    """Print every version, newest first; under them, what kept one from being published."""
    versions = status(uri, job.storage)
    if job.json:
        for one in versions:
            print(json.dumps(dataclasses.asdict(one), ensure_ascii=False, default=str))
        return
    shown = Table("version", "written", "rows", "size", "run", "tags", "gate")
    for column in shown.columns:
        column.overflow = "fold"
    for one in versions:
        written = f"{one.written:%Y-%m-%d %H:%M}"
        cells = (str(one.version), written, f"{one.rows:,}", _size(one.data_bytes), one.run or "")
        shown.add_row(*cells, _shown_tags(one), _gate(one))
    print(uri)  # not the table's title, which would fold to the table's width
    Console(
        markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 120
    ).print(shown)
    for one in versions:
        for check in one.gate or []:
            if not check.passed:
                print(
                    f"version {one.version}: {check.name}: {check.found}"
                    f" (expected: {check.expected})"
                )
    table = VectorTable.open(uri, storage=job.storage)
    print(f"{_size(stored_bytes(table))} stored in all; versions share most of their files")


def _shown_tags(one: VersionStatus) -> str:
    """The tags; of its run's own one, which the column beside it names, only that it is there."""
    return ", ".join("run" if tag == f"run-{one.run}" else tag for tag in one.tags)


def _gate(one: VersionStatus) -> str:
    if one.gate is None:
        return ""
    failed = [check.name for check in one.gate if not check.passed]
    return f"failed: {', '.join(failed)}" if failed else "passed"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    arguments = sys.argv[1:]
    words: list[str] = []
    while arguments and not arguments[0].startswith("-"):
        words.append(arguments.pop(0))
    if len(words) > 2:
        raise SettingsError(
            f"{' '.join(words)}: too many words; expected an action and, for promote, a version"
        )
    named = [f"--{name}={word}" for name, word in zip(("action", "version"), words, strict=False)]
    about = (__doc__ or "").split("\n\n")[0]
    run(settings.read_settings(PublishJob, [*named, *arguments], about=about))


if __name__ == "__main__":
    settings.run_job(main)
