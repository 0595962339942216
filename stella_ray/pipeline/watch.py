"""The driver's watch over a run: its history for the report, and its metrics."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from stella_ray.pipeline.history import History
from stella_ray.pipeline.ledger import Counts
from stella_ray.pipeline.metrics import Metrics
from stella_ray.pipeline.report import RunReport

FATES = ("embedded", "unchanged", "refreshed", "repeated", "rejected", "replaced", "deleted")
"""Of documents, as a report counts them."""


class Watch:
    """Takes down what comes back to the driver; `report` is the run's."""

    def __init__(self, report: RunReport) -> None:
        self.report = report
        self.history = History(time.time())
        self._metrics = Metrics({"run": report.run_id, "table": report.table})
        self._told: Counter[str] = Counter()

    def receipt(self, receipt: pa.Table, counts: Counts, rejects: Mapping[str, int]) -> None:
        """Enter receipts.

        Args:
            receipt: of the schema `receipts.RECEIPT`.
            counts: the sums with them.
            rejects: rejects so far by kind of reason.
        """
        now = time.time()
        for stage, seconds in self.history.add(receipt, now):
            self._metrics.tell("queue_seconds", seconds, stage=stage)
        # Late nodes may have brought more than there were at the start.
        self.report.encoders = max(self.report.encoders, len(self.history.shares))
        self._up_to("read_documents", counts.rows_read)
        self._rejects(rejects)
        spent = max(1e-9, now - self.history.began)
        self._metrics.tell("tokens_per_second", counts.tokens / spent)
        if math.isfinite(counts.encoded_from):
            self._metrics.tell("device_busy", counts.device_busy(self.report.encoders))
        self._matrix_share()

    def committed(self, rows: int) -> None:
        """Count a version that added rows or took some away."""
        self.report.commits += 1
        self.report.committed_rows += rows
        self._metrics.tell("commits", 1)
        self._metrics.tell("committed_rows", rows)

    def end(self, rejects: Mapping[str, int]) -> None:
        """Fill in the report what is drawn from it; the last numbers are the report's own."""
        report = self.report
        report.history = self.history.to_json()
        report.halvings, report.matrix_share = self.history.halvings, self.history.matrix_share
        report.reject_kinds = dict(Counter(rejects).most_common())
        self._rejects(rejects)
        for fate in FATES:
            self._metrics.tell("documents", getattr(report, fate), fate=fate)
        self._metrics.tell("tokens_per_second", report.tokens_per_second)
        self._metrics.tell("device_busy", report.device_busy)
        self._matrix_share()

    def _matrix_share(self) -> None:
        share = self.history.matrix_share
        if share is not None:
            self._metrics.tell("matrix_share", share)

    def _rejects(self, kinds: Mapping[str, int]) -> None:
        for reason, count in kinds.items():
            self._up_to("rejects", count, reason=reason)

    def _up_to(self, name: str, total: int, **tags: str) -> None:
        """Tell a counter what is new since the last time."""
        key = f"{name} {tags}"
        self._metrics.tell(name, total - self._told[key], **tags)
        self._told[key] = total
