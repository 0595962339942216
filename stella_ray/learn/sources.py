"""What a type of training examples is: its files and columns, loss, batch size and prefixes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from stella_ray.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ExampleSource:
    """Examples of one type: where they are, which loss learns from them, and how often."""

    name: str
    """What logs and metrics call it; also part of what its random choices depend on."""
    kind: Literal["pairs", "scored", "nli"]
    """pairs: a query and a passage that answers it, with any number of hard negatives (InfoNCE);
    scored: two texts and a number (CoSENT); nli: two texts and a word of `label_order` (CoSENT).
    Scores of different scales must not meet in one batch: give each data set a source of its own.
    """
    files: list[str]
    """Parquet, jsonl (ndjson) or csv, the last two also .gz or .zst; folders, globs; disk or S3."""
    query_column: str = "query"
    """Of scored pairs and NLI: the first text."""
    passage_column: str = "passage"
    """Of scored pairs and NLI: the second text."""
    negatives_column: str | None = None
    """pairs: hard negatives, a list of texts (in csv as JSON); null or an empty list is none."""
    negatives_are: Literal["list", "text"] = "list"
    """text: the column holds one negative as it is instead of a list."""
    label_column: str = "label"
    """scored: a number, or one written as text; nli: a word."""
    label_order: list[str] = field(
        default_factory=lambda: ["contradiction", "neutral", "entailment"]
    )
    """nli: the labels from least to most alike; CoSENT only asks for their order."""
    lowest_score: float | None = None
    """scored: a smaller one is refused as a mistake. Default: any."""
    highest_score: float | None = None
    """scored: a greater one is refused as a mistake. Default: any."""
    batch_size: int = 1024
    """Rows of a step, over all workers; for InfoNCE also how many negatives a query meets."""
    weight: int = 1
    """Steps of this source in each round of the visiting order."""
    loss_factor: float = 1.0
    """Its loss is multiplied by this: CoSENT's, the log of a sum over pairs, is some 40 where
    InfoNCE's is 1 to 3, and clipping sees the difference though Adam hardly does."""
    scale: float | None = None
    """One over the temperature. Default, as stella's authors: 30 for InfoNCE, 20 for CoSENT."""
    symmetric: bool = False
    """pairs: also let each passage find its query."""
    negative_share: float = 0.2
    """pairs: probability that a row gives hard negatives to a step; 0.2 is the "+20%" of stella's
    authors. Drawn anew each epoch."""
    negatives_per_row: int = 1
    """pairs: how many such a row gives, or all that it has."""
    guide_margin: float | None = None
    """pairs: leave a negative out where the guide (--guide) finds it closer to the query than the
    own passage less this share of its cosine; 0.05 is NV-Retriever's 95%. Default: none is."""
    last_batch: Literal["drop", "keep"] = "drop"
    """An epoch's last batch where it would be short: drop leaves its rows out until the next
    epoch's order, so that every step compares equally many; keep makes a smaller step."""
    prefix: Literal["auto", "by_length", "always", "never"] = "auto"
    """Which rows get the encoder's prefixes. by_length, as stella's authors: a short query with a
    long passage, so that retrieval is told from similarity; auto: that for pairs, never for the
    others."""
    short_query: int = 32
    """by_length: the query has fewer characters than this."""
    long_passage: int = 64
    """by_length: and its passage has more than this."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        where = f"source {self.name!r}:"
        for name, least in (("batch_size", 1), ("weight", 1), ("negatives_per_row", 1)):
            if getattr(self, name) < least:
                raise SettingsError(
                    f"{where} {name} {getattr(self, name)} is too small; expected {least} or more"
                )
        if not 0 <= self.negative_share <= 1:
            raise SettingsError(
                f"{where} negative_share {self.negative_share} is no share; expected 0 to 1"
            )
        for name in ("loss_factor", "scale"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"{where} {name} {value} can't be; expected a number above 0")
        if not self.files:
            raise SettingsError(f"{where} no files; expected at least one file or glob")
        pairs_only = ("negatives_column", "symmetric", "guide_margin")
        given = [name for name in pairs_only if getattr(self, name) not in (None, False)]
        if self.kind != "pairs" and given:
            word = given[0]
            raise SettingsError(f"{where} {word} goes with kind pairs; found {self.kind}")
        if len(set(self.label_order)) < max(2, len(self.label_order)):
            raise SettingsError(
                f"{where} label_order {self.label_order} orders nothing; expected two different"
                " labels or more"
            )

    @property
    def loss(self) -> Literal["info_nce", "cosent"]:
        """Which of `contrastive`'s losses learns from it."""
        return "info_nce" if self.kind == "pairs" else "cosent"

    @property
    def columns(self) -> list[str]:
        """Those that are read."""
        more = self.negatives_column if self.kind == "pairs" else self.label_column
        return [self.query_column, self.passage_column, *([more] if more else [])]
