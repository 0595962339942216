"""What an evaluation leaves behind: one record a task, with what each question or pair contributed.

Two encoders' records of one task can be compared unit by unit: that is what paired intervals need.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

Statistic = Literal["mean", "spearman", "average_precision"]


@dataclass(frozen=True, kw_only=True)
class Units:
    """What a task's score is made of, so that it can be taken again over resampled units.

    Attributes:
        statistic: how units become the score: the mean of `values`; Spearman's correlation of
            `values` and `labels`; average precision of `values` as scores for `labels` 0 and 1.
        names: each unit's own name (a question's id, the row of a pair, the number of an
            experiment): two records are compared where the names agree.
        values: a number a unit.
        labels: a number a unit; empty for the mean.
    """

    statistic: Statistic = "mean"
    names: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task, one encoder, one way to rank.

    Attributes:
        task: its name, such as T2Retrieval or cmrc2018.
        type: such as STS, Retrieval, LongText.
        ranking: vectors, bm25 or hybrid; vectors where nothing is ranked.
        metric: the name of the main one, a key of `metrics`.
        metrics: shares from 0 to 1, correlations from -1 to 1.
        units: by metric, where it is made of units.
        facts: what a reader must know to trust it: split, documents, questions, rows, prefixes.
        revision: of the data: the hub's, or a digest of the local files.
        fingerprint: the encoder's digest; empty for bm25.
        seconds: that it took.
    """

    task: str
    type: str
    ranking: Literal["vectors", "bm25", "hybrid"] = "vectors"
    metric: str
    metrics: dict[str, float]
    units: dict[str, Units] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    revision: str = ""
    fingerprint: str = ""
    seconds: float = 0.0

    @property
    def score(self) -> float:
        """The main metric's value."""
        return self.metrics[self.metric]

    @property
    def file_name(self) -> str:
        """Of its record among others of the same encoder and settings."""
        return re.sub(r"[^\w.-]", "_", f"{self.task}.{self.ranking}.{self.revision[:12]}") + ".json"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> TaskResult:
        """From `to_json`'s values.

        Raises:
            KeyError, TypeError: it isn't such a record.
        """
        units = {name: Units(**one) for name, one in found.get("units", {}).items()}
        return TaskResult(**{**found, "units": units})
