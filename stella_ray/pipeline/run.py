"""A run from its first key to the moved tag: embed what is new, delete what is stale, publish."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun, TableError, stella_error_in
from stella_ray.pipeline.cluster import Pool, PoolSettings, configure_data
from stella_ray.pipeline.corpus import Corpus
from stella_ray.pipeline.embed import doubled_rows, receipts
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.ledger import Ledger, SampleBook
from stella_ray.pipeline.report import Progress, RejectsFile, RunReport
from stella_ray.table.gate import WRONG_VECTORS, GateSettings, check_gate, refuse
from stella_ray.table.index import IndexSettings, tidy
from stella_ray.table.lock import TableLock
from stella_ray.table.publish import LIVE, mark_suspect, passed, publish
from stella_ray.table.vectors import VectorTable
from stella_ray.table.versions import clean, clean_runs

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What a run must not do, however the corpus looks."""

    max_delete_fraction: float
    max_reject_fraction: float
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A corpus on its way into a table.

    `execute`: 1. clean up after dead runs. 2. Read the known keys. 3. Embed and commit what is new.
    4. Settle doubled ids. 5. Check the guards. 6. Delete what is stale with the last commit.
    7. Compact and index. 8. Check the candidate at the gate. 9. Publish it. 10. Drop old versions.
    """

    corpus: Corpus
    table: VectorTable
    how: Preparation
    encoder: EncoderSettings
    settings: PoolSettings
    pool: Pool
    guards: Guards
    index: IndexSettings
    keep_runs: int
    lock: TableLock
    report: RunReport
    rejects: RejectsFile
    samples: SampleBook = field(default_factory=SampleBook)

    def execute(self) -> None:
        """Do all of it.

        Raises:
            IncompleteRun: something is missing; what was written is committed, `live` is as it was.
            StellaError: a shard, the encoder or the table failed; likewise.
        """
        configure_data(self.pool, ray.data.DataContext.get_current())
        self._clean()
        with self.report.stage("known"):
            ledger = Ledger(self.table.known())
        try:
            self._embed(ledger)
            self._settle_doubled(ledger)
            if ledger.counts.bad_shards:  # what isn't seen may be in them
                ledger.keep_unseen()
            self._check_guards(ledger)
            self._last_commit(ledger)
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            _let_go(error)
            raise _as_person_reads_it(error) from error
        finally:
            try:
                self._commit(ledger)  # whatever went wrong, what is written is kept
            finally:
                self._fill_report(ledger)
        self._publish(ledger)
        self._clean()

    def _clean(self) -> None:
        """Drop what dead runs left and what no reader needs any more.

        What can't be removed tonight is no reason to fail: the next run tries again.
        """
        with self.report.stage("clean"):
            self.lock.assure()
            try:
                cleaned = clean(self.table, self.keep_runs)
                clean_runs(self.table)
            except TableError as error:
                log.warning("old versions stay for now: %s", error)
                return
        self.report.cleaned_versions += cleaned.versions
        self.report.cleaned_bytes += cleaned.bytes

    def _embed(self, ledger: Ledger) -> None:
        target: dict[str, Any] = {
            "uri": self.table.uri,
            "schema": self.table.dataset.schema.remove_metadata(),
            "run_id": self.report.run_id,
            "known": ray.put(ledger.known),
            "storage": self.table.storage,
        }
        progress = Progress(self.corpus.bytes)
        last_commit = began = time.monotonic()
        try:
            for receipt in receipts(self.corpus, self.how, self.encoder, self.pool, target):
                if "first_receipt" not in self.report.seconds:
                    self.report.add_seconds("first_receipt", time.monotonic() - began)
                ledger.add(receipt)
                self._note(receipt)
                late = time.monotonic() - last_commit >= self.settings.seconds_per_commit
                if ledger.pending_rows >= self.settings.rows_per_commit or late:
                    self._commit(ledger)
                    last_commit = time.monotonic()
                progress.show(ledger.counts)
        finally:
            progress.close()
            self.report.add_seconds("embed", time.monotonic() - began)

    def _note(self, receipt: pa.Table) -> None:
        for row in receipt.select(["rejects", "bad_shards", "samples"]).to_pylist():
            self.samples.add(row["samples"])
            for one in row["rejects"] + row["bad_shards"]:
                shard = self.corpus.shard_name(one["shard"])
                self.rejects.add(shard, one["row"], one["doc_id"], one["reason"])

    def _commit(self, ledger: Ledger) -> None:
        if not ledger.pending:
            return
        with self.report.stage("commit"):
            self.lock.assure()
            self.table.commit(ledger.take_pending())

    def _settle_doubled(self, ledger: Ledger) -> None:
        """Keep the first row, in the order of the corpus, of an id that stands for several."""
        documents = ledger.doubled_documents()
        if not len(documents):
            return
        first: dict[str, dict[str, Any]] = {}
        losing: list[dict[str, Any]] = []
        with self.report.stage("doubled_ids"):
            rows = doubled_rows(self.corpus, self.how, self.pool, documents)
        # Without rows that were rejected later than others: those without a unit vector.
        whole = np.isin([row["row_key"] for row in rows], ledger.expected())
        rows = [row for row, fine in zip(rows, whole, strict=True) if fine]
        for row in rows:
            winner = first.setdefault(row["doc_id"], row)
            if row["row_key"] != winner["row_key"]:
                losing.append(row)
                where = f"{self.corpus.shard_name(winner['shard'])} row {winner['row']}"
                self.rejects.add(
                    self.corpus.shard_name(row["shard"]),
                    row["row"],
                    row["doc_id"],
                    f"the id occurs again with a different text or kept column; kept: {where}",
                )
        ledger.strike([row["row_key"] for row in losing])

    def _check_guards(self, ledger: Ledger) -> None:
        counts, report = ledger.counts, self.report
        if counts.rejected > self.guards.max_reject_fraction * counts.rows_read:
            raise IncompleteRun(
                f"{counts.rejected:,} of {counts.rows_read:,} rows were rejected, more than"
                f" max_reject_fraction {self.guards.max_reject_fraction:g} allows; which and why is"
                f" in {self.rejects.uri}. Mend them, or raise --max_reject_fraction; the published"
                " version is as it was"
            )
        gone, before = ledger.vanished_documents()
        if gone > self.guards.max_delete_fraction * before:
            raise IncompleteRun(
                f"{gone:,} of the table's {before:,} documents are gone from the corpus, more than"
                f" max_delete_fraction {self.guards.max_delete_fraction:g} allows to delete; check"
                " that --corpus is whole, or raise --max_delete_fraction. The published version is"
                " as it was"
            )
        report.deleted = gone

    def _last_commit(self, ledger: Ledger) -> None:
        """Add the last fragments and delete the stale rows, in one version where that can be."""
        with self.report.stage("commit"):
            self.lock.assure()
            there = ledger.known
            if not ledger.one_commit_is_enough():
                self.table.commit(ledger.take_pending())
                there = self.table.known()
            self.table.commit(ledger.take_pending(), ledger.doomed(there))

    def _publish(self, ledger: Ledger) -> None:
        report, table = self.report, self.table
        live = table.tagged().get(LIVE)
        report.table_documents, report.table_rows = ledger.documents(), len(ledger.expected())
        with report.stage("index"):
            self.lock.assure()
            tidy(table, self.index)
        report.version, report.live_before = table.version, live
        if table.version != live:
            with report.stage("gate"):
                # A version that was promoted by force was never checked.
                checked = live if live in passed(table.tagged()) else None
                samples = self.samples.arrays()
                checks = check_gate(table, ledger.expected(), samples, self.guards.gate, checked)
            report.gate = [asdict(check) for check in checks]
            if any(check.name in WRONG_VECTORS and not check.passed for check in checks):
                mark_suspect(table, report.run_id)
            refuse(table, checks)
            self.lock.assure()
            publish(table, report.run_id)
        report.outcome = "published"

    def _fill_report(self, ledger: Ledger) -> None:
        report = self.report
        report.count(ledger.counts)
        report.embedded, report.refreshed = ledger.embedded_and_refreshed()
        report.unchanged = ledger.unchanged + report.refreshed
        report.repeated, report.kept_unseen = ledger.repeated, ledger.kept_unseen
        report.replaced = ledger.gone() - report.deleted
        report.rejects = self.rejects.uri if self.rejects.count else None
        spent = report.seconds.get("embed", 0.0)
        report.tokens_per_second = round(report.tokens / spent, 1) if spent else 0.0


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of a failure hold on to.

    They hold blocks, blocks hold the encoder's actor that made them, and the actor a GPU, for which
    the next run in this process (a notebook's, say) would wait in vain.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def _as_person_reads_it(error: Exception) -> Exception:
    """The one line of a failure on a worker; a bug in our code stays the exception that it is."""
    known = stella_error_in(error)
    if known is not None or isinstance(error, ray.exceptions.RayTaskError):
        return known or error
    reason = " ".join(str(error).split())[:300]
    return IncompleteRun(
        f"the pipeline broke off ({type(error).__name__}: {reason}); what was committed stays, run"
        " it again to go on. The published version is as it was"
    )
