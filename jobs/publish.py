"""See which versions a table has, or go back to the one published before.

python jobs/publish.py status --table TABLE
python jobs/publish.py rollback --table TABLE
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from stella_ray import settings
from stella_ray.storage import absolute
from stella_ray.table.publish import rollback, status
from stella_ray.table.vectors import table_uri


@dataclass(frozen=True, kw_only=True)
class PublishJob:
    """See which versions a table has, or go back to the one published before."""

    action: Literal["status", "rollback"]
    """What to do; may be given as the first word."""
    table: str
    """DIR/NAME, as it was embedded."""


def run(job: PublishJob) -> None:
    """Print the versions, or swap `live` and `live-previous`."""
    uri = table_uri(absolute(job.table))
    if job.action == "rollback":
        now, before = rollback(uri)
        print(
            f"live is version {now} again; {before} is live-previous: one more rollback undoes it"
        )
        return
    shown = Table("version", "written", "rows", "tags")
    for one in status(uri):
        written = f"{one.written:%Y-%m-%d %H:%M:%S}"
        shown.add_row(str(one.version), written, f"{one.rows:,}", ", ".join(one.tags))
    print(uri)  # not the table's title, which would fold to the table's width
    Console(markup=False, width=None if sys.stdout.isatty() else 120).print(shown)


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--action", *arguments]
    run(settings.read_settings(PublishJob, arguments, about=(__doc__ or "").split("\n\n")[0]))


if __name__ == "__main__":
    settings.run_job(main)
