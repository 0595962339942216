"""What a run would do and cost, as it is asked for and as it is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from stella_ray.errors import SettingsError


@dataclass(frozen=True)
class Rate:
    """Tokens a second of one encoder, how many there are, and where that comes from."""

    tokens_per_second: float
    encoders: int
    told: str


@dataclass(frozen=True, kw_only=True)
class EstimateSettings:
    """How --dry_run counts, and what a run's report reckons its cost with."""

    share: float = 1.0
    """Share of the corpus's bytes to read, in whole shards; counts are scaled by it. 1 counts
    exactly, at the price of reading and tokenising: seconds for a hundred thousand documents."""
    gpu: str | None = None
    """Kind of GPU that the run would have: h100, h200, a100, l40s, l4, a10g, v100, t4. Default:
    what the last run of this table did, if it had the same encoders."""
    encoders: int = 0
    """GPUs of that kind at work; 0: the run's own pool."""
    tokens_per_second: float = 0.0
    """Of one encoder, where you know it; 0: by the kind of GPU, or by the last run."""
    price_per_hour: float | None = None
    """Of one encoder's machine or GPU, in any currency. Default: no cost is shown."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if not 0 < self.share <= 1:
            raise SettingsError(f"estimate.share {self.share:g}; expected above 0, at most 1")
        for name in ("encoders", "tokens_per_second", "price_per_hour"):
            if (getattr(self, name) or 0) < 0:
                raise SettingsError(f"estimate.{name} {getattr(self, name)} is negative")


@dataclass
class RejectCounts:
    """Rejects by their reason, with the first places of each; nothing is written."""

    uri: str = "the list above"
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, shard: str, row: int, doc_id: str | None, reason: str) -> None:
        """Count one."""
        del doc_id
        reason = reason.partition("; kept:")[0]
        self.count += 1
        self.reasons[reason] += 1
        if len(places := self.places.setdefault(reason, [])) < 3:
            places.append(shard if row < 0 else f"{shard} row {row}")


@dataclass
class Estimate:
    """What a run would do; counts are documents, scaled where a sample was read.

    Attributes:
        shards, shards_read, share: of the corpus; the share of its bytes that was read.
        new, changed, unchanged, refreshed, rejected, repeated, deleted: as a run's report has them;
            `changed` documents are in the table with another text.
        table_rows: that the table would hold.
        written_bytes: about what would be written: vectors, texts and the rest.
        refused: the line with which the run would end, None where it would publish.
        seconds, encoder_hours, cost: of encoding, by `rate`; None where there is none.
    """

    shards: int
    shards_read: int
    share: float
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    refreshed: int = 0
    rejected: int = 0
    repeated: int = 0
    deleted: int = 0
    bad_shards: int = 0
    truncated: int = 0
    tokens: int = 0
    table_rows: int = 0
    written_bytes: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    refused: str | None = None
    rate: str = ""
    seconds: float | None = None
    encoder_hours: float | None = None
    cost: float | None = None

    def at(self, rate: Rate | None, asked: EstimateSettings) -> None:
        """Fill in what the tokens cost."""
        if rate is None:
            self.rate = "unknown; give --estimate.gpu or --estimate.tokens_per_second"
            return
        self.rate = rate.told
        self.seconds = self.tokens / (rate.tokens_per_second * rate.encoders)
        self.encoder_hours = self.seconds * rate.encoders / 3600
        if asked.price_per_hour is not None:
            self.cost = self.encoder_hours * asked.price_per_hour

    def __str__(self) -> str:
        """Lines for people."""
        whole = self.shards_read == self.shards
        read = (
            f"all {self.shards:,} shards"
            if whole
            else (
                f"{self.shards_read:,} of {self.shards:,} shards, {self.share:.1%} of the bytes;"
                " all numbers are scaled"
            )
        )
        embedded = self.new + self.changed
        each = self.tokens / embedded if embedded else 0.0
        lines = [
            f"dry run over {read}; nothing is written",
            f"documents: {self.new:,} new, {self.changed:,} changed, {self.unchanged:,} unchanged"
            + (f" ({self.refreshed:,} of them refreshed)" if self.refreshed else "")
            + f", {self.rejected:,} rejected"
            + (f", {self.repeated:,} repeated" if self.repeated else "")
            + f"; {self.deleted:,} to delete",
            f"tokens: {self.tokens:,} to encode, {each:,.0f} a document; {self.truncated:,}"
            " documents cut at max_tokens",
            f"table: {self.table_rows:,} rows; about {self.written_bytes / 1e6:,.1f} MB to write,"
            " indexes not counted",
        ]
        if self.seconds is None:
            lines.append(f"time: {self.rate}")
        else:
            cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
            lines.append(
                f"time: {self.seconds / 60:,.1f} minutes of encoding, {self.encoder_hours:,.3f}"
                f" encoder hours{cost}; {self.rate}"
            )
        for reason, count in sorted(self.rejects.items(), key=lambda item: -item[1]):
            lines.append(f"rejected {count:,}: {reason} ({', '.join(self.places[reason])})")
        if self.bad_shards:
            lines.append(f"{self.bad_shards:,} bad shards, so nothing would be deleted")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)
