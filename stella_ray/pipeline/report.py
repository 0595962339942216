"""What a run says: a progress line, the summary and report.json."""

from __future__ import annotations

import logging
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from stella_ray.pipeline.ledger import Counts
from stella_ray.storage import StorageSettings, write_json

log = logging.getLogger(__name__)

PACKAGES = (
    "stella-ray",
    "ray",
    "torch",
    "transformers",
    "tokenizers",
    "pyarrow",
    "lancedb",
    "pylance",
)

SECONDS_PER_LINE = 10.0
"""Between two progress lines where there is no terminal to redraw one on."""


@dataclass
class RunReport:
    """Everything that report.json holds.

    The documents add up: rows_read = embedded + unchanged + rejected + repeated, and
    table_documents = embedded + unchanged + kept_unseen. `table_rows` is the same number, or more
    where long documents have several rows. `refreshed` rows (kept columns changed, vector kept) are
    among the unchanged ones; `repeated` rows are the same in all as another; `replaced` counts old
    versions of changed documents, `deleted` documents that are gone from the corpus. Where
    `bad_shards` were rejected nothing counts as gone: `kept_unseen` documents of the table stay.
    Of `seconds`, `first_receipt` counts from the pipeline's start, `first_batch` from the job's to
    the first encoded window. `device_busy` is the share of the time from the first window's start
    to the last one's end in which an encoder was at work, `matrix_share` the share of the data
    sheet's matrix rate that it reached meanwhile, None where that isn't known. `reject_kinds`
    counts the lines of the rejects file; a document of several bad chunks has several. `history` is
    what `run_page` draws, of bounded size: `history.History`. `costs` is that of `rates.costs_of`.
    """

    run_id: str
    table: str
    encoder: dict[str, Any]
    settings: dict[str, Any]
    outcome: str = "unfinished"
    rows_read: int = 0
    embedded: int = 0
    unchanged: int = 0
    refreshed: int = 0
    repeated: int = 0
    rejected: int = 0
    deleted: int = 0
    replaced: int = 0
    bad_shards: int = 0
    kept_unseen: int = 0
    truncated: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    table_documents: int = 0
    table_rows: int = 0
    gate: list[dict[str, Any]] = field(default_factory=list)
    cleaned_versions: int = 0
    cleaned_bytes: int = 0
    version: int | None = None
    live_before: int | None = None
    pool: str = ""
    encoders: int = 1
    rejects: str | None = None
    reject_kinds: dict[str, int] = field(default_factory=dict)
    commits: int = 0
    committed_rows: int = 0
    halvings: int = 0
    tokens_per_second: float = 0.0
    device_busy: float = 0.0
    matrix_share: float | None = None
    began: float = field(default_factory=time.time)
    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: package_versions())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the driver; several times under one name add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - began)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to a stage's seconds."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)

    def count(self, counts: Counts) -> None:
        """Take over the receipts' sums; read, encode and write seconds are the workers', summed."""
        for name in (
            *("rows_read", "repeated", "rejected", "bad_shards"),
            *("truncated", "tokens", "padded_tokens"),
        ):
            setattr(self, name, getattr(counts, name))
        if math.isfinite(counts.first_encoded):  # by the worker's clock
            self.seconds["first_batch"] = round(counts.first_encoded - self.began, 3)
            self.device_busy = round(counts.device_busy(self.encoders), 3)
        for name in ("read", "encode", "write"):
            self.seconds[name] = round(getattr(counts, f"{name}_seconds"), 3)

    def save(self, *places: str, storage: StorageSettings = StorageSettings()) -> bool:
        """Write report.json to each place; one that can't be written is a word in the log.

        A full disk or a store that is away has its own error already, which must not be hidden.

        Returns:
            Whether all are written.
        """
        written = True
        for place in places:
            try:
                write_json(place, asdict(self), storage)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                log.warning("%s: the report could not be written (%s)", place, reason)
                written = False
        return written

    def __str__(self) -> str:
        """The summary for people, a few lines."""
        padding = 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0
        lines = [
            f"read {self.rows_read:,} rows: {self.embedded:,} embedded,"
            f" {self.unchanged:,} unchanged"
            + (f" ({self.refreshed:,} of them refreshed)" if self.refreshed else "")
            + f", {self.rejected:,} rejected"
            + (f", {self.repeated:,} repeated" if self.repeated else "")
            + f"; {self.deleted:,} deleted",
            *(
                [
                    f"{self.bad_shards:,} bad shards were passed over, so nothing was deleted:"
                    f" {self.kept_unseen:,} documents that weren't seen stay"
                ]
                if self.bad_shards
                else []
            ),
            f"{self.tokens:,} tokens, {padding:.1%} padding,"
            f" {self.truncated:,} documents cut at max_tokens,"
            f" {self.tokens_per_second:,.0f} tokens/s",
            f"table {self.table}: "
            + (
                f"{self.table_documents:,} documents in "
                if self.table_rows != self.table_documents
                else ""
            )
            + f"{self.table_rows:,} rows, version {self.version}"
            + (f" is live (was {self.live_before})" if self.outcome == "published" else ""),
        ]
        if self.rejects:
            lines.append(f"rejects: {self.rejects}")
        return "\n".join(lines)


def package_versions() -> dict[str, str]:
    """What the run stood on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout that was not installed
            found[name] = "not installed"
    return found


class Progress:
    """A line that says how far the run is: redrawn on a terminal, now and then elsewhere."""

    def __init__(self, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_bytes = total_bytes
        self.clock = clock
        self.began = self.printed = clock()
        self.live = sys.stderr.isatty()

    def line(self, counts: Counts) -> str:
        """Documents, tokens a second and the time left, by the share of the corpus's bytes read."""
        spent = max(1e-9, self.clock() - self.began)
        share = min(1.0, counts.shard_bytes / self.total_bytes) if self.total_bytes else 0.0
        left = f", {_duration(spent / share - spent)} left" if share else ""
        percent = f" ({share:.0%})" if share else ""
        return (
            f"{counts.rows_read:,} documents{percent}, {counts.tokens / spent:,.0f} tokens/s{left}"
        )

    def show(self, counts: Counts) -> None:
        """Draw the line if it is time."""
        now = self.clock()
        if self.live:
            sys.stderr.write(f"\r\x1b[K{self.line(counts)}")
            sys.stderr.flush()
        elif now - self.printed >= SECONDS_PER_LINE:
            sys.stderr.write(f"{self.line(counts)}\n")
            sys.stderr.flush()
            self.printed = now

    def close(self) -> None:
        """End the redrawn line."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
