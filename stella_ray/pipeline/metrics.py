"""What a run tells Prometheus while it runs, through Ray's metrics agent on each node.

Ray puts `ray_` before each name and `_total` behind a counter's; `docs/watching.md` says what they
mean and `deploy/grafana.json` draws them. A run never fails of a number that can't be told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.metrics import Counter, Gauge, Histogram

log = logging.getLogger(__name__)

WAITS = [0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0]
"""Bounds of a histogram of waits, in seconds."""

RUN, ENCODER = ("run", "table"), ("run", "table", "actor", "node")
"""Tags that every number of the driver and of an encoder has; none grows with the corpus."""


@dataclass(frozen=True)
class Told:
    """What one metric is: its kind, what it counts, and the tags beside those of who tells it."""

    kind: Literal["counter", "gauge", "histogram"]
    says: str
    tags: tuple[str, ...] = RUN


METRICS = {
    "windows": Told("counter", "Windows that an encoder finished", ENCODER),
    "encoded_rows": Told("counter", "Rows that got a vector", ENCODER),
    "tokens": Told("counter", "Tokens encoded, without padding", ENCODER),
    "padded_tokens": Told("counter", "Tokens that the device worked on, with padding", ENCODER),
    "device_seconds": Told("counter", "Seconds in which the device was at work", ENCODER),
    "matrix_seconds": Told(
        "counter",
        "Seconds that the matrix units need for as much at the data sheet's rate",
        ENCODER,
    ),
    "oom_halvings": Told("counter", "Times the token budget was halved for memory", ENCODER),
    "queue_seconds": Told("histogram", "Seconds a block waited before a stage", (*RUN, "stage")),
    "read_documents": Told("counter", "Documents read"),
    "documents": Told("counter", "Documents at the end of a run, by fate", (*RUN, "fate")),
    "rejects": Told("counter", "Rejected rows and shards, by reason", (*RUN, "reason")),
    "commits": Told("counter", "Versions that added rows to the table"),
    "committed_rows": Told("counter", "Rows in them"),
    "tokens_per_second": Told("gauge", "Tokens encoded a second of the pipeline, so far"),
    "device_busy": Told("gauge", "Share of the encoders' time in which they were at work, so far"),
    "matrix_share": Told("gauge", "Share of the data sheet's matrix rate that was reached, so far"),
}
"""By name, without the `stella_ray_` that all have."""


class Metrics:
    """Tells numbers; after the first that can't be told, none.

    Args:
        tags: of every number: the run and its table, and the encoder's actor and node.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._made: dict[str, Any] = {}
        self._silent = not ray.is_initialized()

    def tell(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge, or enter into a histogram."""
        told = METRICS[name]
        if self._silent or (told.kind == "counter" and value <= 0):
            return
        try:
            metric = self._made.get(name) or self._make(name, told)
            how = {"counter": "inc", "gauge": "set", "histogram": "observe"}[told.kind]
            getattr(metric, how)(float(value), {**self._tags, **tags})
        except Exception as error:
            self._silent = True
            log.warning("no metrics any more (%s)", " ".join(str(error).split())[:200])

    def _make(self, name: str, told: Told) -> Any:
        full = f"stella_ray_{name}"
        if told.kind == "histogram":
            made: Any = Histogram(full, told.says, boundaries=WAITS, tag_keys=told.tags)
        else:
            kind = Counter if told.kind == "counter" else Gauge
            made = kind(full, told.says, tag_keys=told.tags)
        self._made[name] = made
        return made
