"""A run from its first key to the moved tag: embed what is new, delete what is stale, publish."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import ray

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun, TableError, stella_error_in
from stella_ray.pipeline.cluster import Pool, PoolSettings, configure_data
from stella_ray.pipeline.corpus import Corpus
from stella_ray.pipeline.embed import receipts
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.ledger import Ledger, SampleBook
from stella_ray.pipeline.rejects import RejectsFile
from stella_ray.pipeline.report import Progress, RunReport
from stella_ray.pipeline.settle import (
    Guards,
    check_guards,
    fill_report,
    note_rejects,
    settle_doubled,
)
from stella_ray.pipeline.watch import Watch
from stella_ray.table.gate import WRONG_VECTORS, check_gate, refuse
from stella_ray.table.index import IndexSettings, tidy
from stella_ray.table.lock import TableLock
from stella_ray.table.publish import LIVE, mark_suspect, passed, publish
from stella_ray.table.vectors import VectorTable
from stella_ray.table.versions import clean, clean_runs

log = logging.getLogger(__name__)


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

    @cached_property
    def watch(self) -> Watch:
        """What takes down how it goes, from its first use on."""
        return Watch(self.report)

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
            with self.report.stage("doubled_ids"):
                settle_doubled(ledger, self.corpus, self.how, self.pool, self.rejects)
            if ledger.counts.bad_shards:  # what isn't seen may be in them
                ledger.keep_unseen()
            self.report.deleted = check_guards(ledger, self.guards, self.rejects.uri)
            self._last_commit(ledger)
        except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
            _let_go(error)
            raise _as_person_reads_it(error) from error
        finally:
            try:
                self._commit(ledger)  # whatever went wrong, what is written is kept
            finally:
                fill_report(self.report, ledger, self.rejects)
                self.watch.end(self.rejects.kinds)
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
        progress, watch = Progress(self.corpus.bytes), self.watch
        last_commit = began = time.monotonic()
        try:
            for receipt in receipts(self.corpus, self.how, self.encoder, self.pool, target):
                if "first_receipt" not in self.report.seconds:
                    self.report.add_seconds("first_receipt", time.monotonic() - began)
                ledger.add(receipt)
                note_rejects(receipt, self.corpus, self.rejects)
                watch.receipt(receipt, ledger.counts, self.rejects.kinds)
                for row in receipt.column("samples").to_pylist():
                    self.samples.add(row)
                late = time.monotonic() - last_commit >= self.settings.seconds_per_commit
                if ledger.pending_rows >= self.settings.rows_per_commit or late:
                    self._commit(ledger)
                    last_commit = time.monotonic()
                progress.show(ledger.counts)
        finally:
            progress.close()
            self.report.add_seconds("embed", time.monotonic() - began)

    def _commit(self, ledger: Ledger) -> None:
        if not ledger.pending:
            return
        with self.report.stage("commit"):
            self.lock.assure()
            self._add(ledger)

    def _last_commit(self, ledger: Ledger) -> None:
        """Add the last fragments and delete the stale rows, in one version where that can be."""
        with self.report.stage("commit"):
            self.lock.assure()
            there = ledger.known
            if not ledger.one_commit_is_enough():
                self._add(ledger)
                there = self.table.known()
            self._add(ledger, ledger.doomed(there))

    def _add(self, ledger: Ledger, doomed: np.ndarray | None = None) -> None:
        rows, before = ledger.pending_rows, self.table.version
        self.table.commit(ledger.take_pending(), doomed)
        if self.table.version != before:
            self.watch.committed(rows)

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
