"""How a run went over time and over its encoders, from its receipts; of bounded size."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from stella_ray.receipts import LENGTHS

POINTS = 200
"""Most spans of time that are kept apart; where they don't do, each becomes twice as long."""

STAGES = ("encode", "write", "receive")
"""Before which a block may have to wait: for an encoder, for a writer, for the driver."""


class Timeline:
    """Amounts by when they were done, in at most `POINTS` spans of equal length.

    Args:
        names: of the amounts.
    """

    def __init__(self, *names: str) -> None:
        self.span = 1.0
        self.amounts = {name: [0.0] for name in names}

    def add(self, name: str, amount: float, first: float, last: float) -> None:
        """Spread an amount evenly between two times, in seconds since the start."""
        first = max(0.0, first)
        last = max(first, last)
        while last >= self.span * POINTS:
            self._halve()
        values = self.amounts[name]
        begin, end = int(first / self.span), int(last / self.span)
        values += [0.0] * (end + 1 - len(values))
        for i in range(begin, end + 1):
            inside = min(last, (i + 1) * self.span) - max(first, i * self.span)
            values[i] += amount * (inside / (last - first) if last > first else 1.0)

    def _halve(self) -> None:
        self.span *= 2
        for name, values in self.amounts.items():
            self.amounts[name] = [sum(values[i : i + 2]) for i in range(0, len(values), 2)]

    def to_json(self) -> dict[str, Any]:
        """The length of a span in seconds, and each amount's sums, equally many."""
        most = max(map(len, self.amounts.values()))
        sums = {
            name: [round(value, 2) for value in values] + [0.0] * (most - len(values))
            for name, values in self.amounts.items()
        }
        return {"span_seconds": self.span, **sums}


@dataclass
class Share:
    """One encoder actor's share of the run; `seconds` are the device's."""

    actor: str
    node: str
    windows: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    matrix_seconds: float = 0.0
    halvings: int = 0

    def add(self, window: dict[str, Any]) -> None:
        """Enter a window, `rows.WINDOW`."""
        self.windows += 1
        for name in ("rows", "tokens", "padded_tokens", "seconds", "matrix_seconds", "halvings"):
            setattr(self, name, getattr(self, name) + window[name])


@dataclass
class Wait:
    """How long blocks waited before a stage, in seconds."""

    blocks: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Enter one."""
        self.blocks += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)


@dataclass
class History:
    """Everything that a run's page draws beside the counts.

    Attributes:
        began: the pipeline's start, in seconds since 1970.
        lengths: written rows by tokens: those of each bin of `LENGTHS`, and longer ones.
    """

    began: float
    timeline: Timeline = field(default_factory=lambda: Timeline("documents", "rows", "tokens"))
    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTHS) + 1))
    shares: dict[str, Share] = field(default_factory=dict)
    waits: dict[str, Wait] = field(default_factory=lambda: {name: Wait() for name in STAGES})

    def add(self, receipt: pa.Table, now: float) -> list[tuple[str, float]]:
        """Enter receipts; returns the stages and seconds of their waits.

        Args:
            receipt: of the schema `receipts.RECEIPT`.
            now: when they came, in seconds since 1970.
        """
        waits: list[tuple[str, float]] = []
        names = ["rows_read", "windows", "lengths", "write_queued", "written_at"]
        for row in receipt.select(names).to_pylist():
            at = now - self.began
            self.timeline.add("documents", row["rows_read"], at, at)
            for window in row["windows"]:
                self._enter(window)
                waits.append(("encode", window["queued"]))
            if row["lengths"]:
                self.lengths = [a + b for a, b in zip(self.lengths, row["lengths"], strict=True)]
            waits.append(("write", row["write_queued"]))
            waits.append(("receive", max(0.0, now - row["written_at"])))
        waits = [(stage, seconds) for stage, seconds in waits if seconds is not None]
        for stage, seconds in waits:
            self.waits[stage].add(seconds)
        return waits

    def _enter(self, window: dict[str, Any]) -> None:
        share = self.shares.setdefault(window["actor"], Share(window["actor"], window["node"]))
        share.add(window)
        span = (window["began"] - self.began, window["ended"] - self.began)
        for name in ("rows", "tokens"):
            self.timeline.add(name, window[name], *span)

    @property
    def halvings(self) -> int:
        """Times that a token budget was halved."""
        return sum(share.halvings for share in self.shares.values())

    @property
    def matrix_share(self) -> float | None:
        """Share of the data sheet's matrix rate that was reached; None where it isn't known."""
        needed = sum(share.matrix_seconds for share in self.shares.values())
        spent = sum(share.seconds for share in self.shares.values())
        return round(needed / spent, 4) if needed and spent else None

    def to_json(self) -> dict[str, Any]:
        """As plain values, of a few kilobytes."""
        shares = sorted(self.shares.values(), key=lambda share: (share.node, share.actor))
        return {
            "timeline": self.timeline.to_json(),
            "lengths": {"up_to": list(LENGTHS), "rows": self.lengths},
            "actors": [_rounded(asdict(share)) for share in shares],
            "waits": {name: _rounded(asdict(wait)) for name, wait in self.waits.items()},
        }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 3) if isinstance(value, float) and math.isfinite(value) else value
        for name, value in values.items()
    }
