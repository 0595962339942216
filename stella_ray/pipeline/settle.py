"""What a run's books say once every row was seen: doubled ids, guards, counts.

A run asks before its last commit, and an estimate instead of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from stella_ray.errors import IncompleteRun
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.corpus import Corpus
from stella_ray.pipeline.embed import doubled_rows
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.ledger import Ledger
from stella_ray.pipeline.report import RunReport
from stella_ray.table.gate import GateSettings


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What a run must not do, however the corpus looks."""

    max_delete_fraction: float
    max_reject_fraction: float
    gate: GateSettings = field(default_factory=GateSettings)


class Rejects(Protocol):
    """Where rejected rows are listed."""

    count: int

    @property
    def uri(self) -> str:
        """Where a person finds them."""
        ...

    def add(self, shard: str, row: int, doc_id: str | None, reason: str) -> None:
        """List one."""
        ...


def note_rejects(receipt: pa.Table, corpus: Corpus, rejects: Rejects) -> None:
    """List the rows and shards that a receipt says were rejected."""
    for row in receipt.select(["rejects", "bad_shards"]).to_pylist():
        for one in row["rejects"] + row["bad_shards"]:
            rejects.add(corpus.shard_name(one["shard"]), one["row"], one["doc_id"], one["reason"])


def settle_doubled(
    ledger: Ledger, corpus: Corpus, how: Preparation, pool: Pool, rejects: Rejects
) -> None:
    """Keep the first row, in the order of the corpus, of an id that stands for several."""
    documents = ledger.doubled_documents()
    if not len(documents):
        return
    first: dict[str, dict[str, Any]] = {}
    losing: list[dict[str, Any]] = []
    rows = doubled_rows(corpus, how, pool, documents)
    # Without rows that were rejected later than others: those without a unit vector.
    whole = np.isin([row["row_key"] for row in rows], ledger.expected())
    rows = [row for row, fine in zip(rows, whole, strict=True) if fine]
    for row in rows:
        winner = first.setdefault(row["doc_id"], row)
        if row["row_key"] != winner["row_key"]:
            losing.append(row)
            where = f"{corpus.shard_name(winner['shard'])} row {winner['row']}"
            rejects.add(
                corpus.shard_name(row["shard"]),
                row["row"],
                row["doc_id"],
                f"the id occurs again with a different text or kept column; kept: {where}",
            )
    ledger.strike([row["row_key"] for row in losing])


def check_guards(ledger: Ledger, guards: Guards, rejects: str) -> int:
    """Check that not too much is rejected, nor would be deleted; returns how many documents are.

    Args:
        ledger: of all rows.
        guards: the bounds.
        rejects: where the rejected rows are listed.

    Raises:
        IncompleteRun: one of them is passed.
    """
    counts = ledger.counts
    if counts.rejected > guards.max_reject_fraction * counts.rows_read:
        raise IncompleteRun(
            f"{counts.rejected:,} of {counts.rows_read:,} rows were rejected, more than"
            f" max_reject_fraction {guards.max_reject_fraction:g} allows; which and why is"
            f" in {rejects}. Mend them, or raise --max_reject_fraction; the published"
            " version is as it was"
        )
    gone, before = ledger.vanished_documents()
    if gone > guards.max_delete_fraction * before:
        raise IncompleteRun(
            f"{gone:,} of the table's {before:,} documents are gone from the corpus, more than"
            f" max_delete_fraction {guards.max_delete_fraction:g} allows to delete; check"
            " that --corpus is whole, or raise --max_delete_fraction. The published version is"
            " as it was"
        )
    return gone


def fill_report(report: RunReport, ledger: Ledger, rejects: Rejects) -> None:
    """Take the books' counts over into the report."""
    report.count(ledger.counts)
    report.embedded, report.refreshed = ledger.embedded_and_refreshed()
    report.unchanged = ledger.unchanged + report.refreshed
    report.repeated, report.kept_unseen = ledger.repeated, ledger.kept_unseen
    report.replaced = ledger.gone() - report.deleted
    report.rejects = rejects.uri if rejects.count else None
    spent = report.seconds.get("embed", 0.0)
    report.tokens_per_second = round(report.tokens / spent, 1) if spent else 0.0
