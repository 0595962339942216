"""Means over C-MTEB's tasks, and the table that a person reads.

A mean is never shown without how many of how many tasks it is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stella_ray.evaluate.bootstrap import paired
from stella_ray.evaluate.compare import ends
from stella_ray.evaluate.long_reference import card_set, long_figures
from stella_ray.evaluate.questions import LONG_TEXT
from stella_ray.evaluate.results import TaskResult
from stella_ray.evaluate.tasks import CMTEB, MTEB_MAIN, MTEB_NAME


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over those tasks of a definition that there are.

    Attributes:
        name: the definition or the type.
        tasks: that the mean is of.
        expected: that the definition has.
        ours: in percent.
        card: the reference's mean over the same tasks; None where it has none.
    """

    name: str
    tasks: int
    expected: int
    ours: float
    card: float | None

    @property
    def label(self) -> str:
        """The name and how many of how many."""
        return f"{self.name}, {self.tasks} of {self.expected} tasks"


def means(results: Iterable[TaskResult], card: Mapping[str, float]) -> list[Mean]:
    """The card's mean over all 35, by type, and mteb's own 31-task mean, in this order.

    Args:
        results: the vectors' records; of tasks that aren't among the 35 none are counted.
        card: the reference's main metrics by task, in percent.
    """
    own = {one.task: one for one in results if one.task in CMTEB and one.ranking == "vectors"}
    ours = {name: 100 * one.metrics[CMTEB[name].metric] for name, one in own.items()}
    out = [_mean("C-MTEB, the model card's metrics", ours, card, list(CMTEB))]
    types = dict.fromkeys(task.type for task in CMTEB.values())
    for kind in types:
        names = [name for name, task in CMTEB.items() if task.type == kind]
        out.append(_mean(kind, ours, card, names))
    of_31 = [name for name, task in CMTEB.items() if task.mteb_splits]
    main = {n: 100 * one.metrics[MTEB_MAIN] for n, one in own.items() if MTEB_MAIN in one.metrics}
    out.append(_mean(f"{MTEB_NAME}, mteb's own metrics", main, {}, of_31))
    return [one for one in out if one is not None]


def _mean(
    name: str, ours: Mapping[str, float], card: Mapping[str, float], of: Sequence[str]
) -> Mean | None:
    there = [task for task in of if task in ours]
    if not there:
        return None
    theirs = [card[task] for task in there if task in card]
    return Mean(
        name=name,
        tasks=len(there),
        expected=len(of),
        ours=sum(ours[task] for task in there) / len(there),
        card=sum(theirs) / len(theirs) if len(theirs) == len(there) else None,
    )


def table(
    results: Sequence[TaskResult], card: Mapping[str, float], reference: str, cached: Iterable[str]
) -> str:
    """Ours, the card's and the difference in percent, a line a task, then the means."""
    from_cache = set(cached)
    vectors = {one.task: one for one in results if one.ranking == "vectors"}
    lines = [("task", "type", "metric", "ours", reference, "difference", "")]
    for one in sorted(results, key=lambda one: (one.type, one.task, one.ranking != "vectors")):
        theirs = _published(one, card, reference) if one.ranking == "vectors" else None
        note = _note(one, one.task in from_cache)
        if one.ranking != "vectors" and one.task in vectors:
            note = _beside(vectors[one.task], one)
        name = one.task if one.ranking == "vectors" else f"  {one.ranking}"
        lines.append((name, one.type, one.metric, *_figures(100 * one.score, theirs), note))
    for mean in means(results, card):
        lines.append((mean.label, "", "mean", *_figures(mean.ours, mean.card), ""))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        + (f"  {line[6]}" if line[6] else "")
        for line in lines
    )


def _published(one: TaskResult, card: Mapping[str, float], reference: str) -> float | None:
    """The card's figure; of long sets that of its own sample of a set of this name."""
    if one.type != LONG_TEXT:
        return card.get(one.task)
    figures: Mapping[str, float] = long_figures()["sets"].get(card_set(one.task), {})
    return figures.get(reference) if one.facts.get("pool") == "each" else None


def _beside(vectors: TaskResult, other: TaskResult) -> str:
    """How far a baseline is from the vectors, with its interval: noise is seen to be noise."""
    a, b = vectors.units.get(vectors.metric), other.units.get(other.metric)
    if a is None or b is None:
        return ""
    found = paired(a, b)
    return f"{100 * found.difference:+.2f} {ends(found)} to the vectors, p {found.p:.4f}"


def _figures(ours: float, theirs: float | None) -> tuple[str, str, str]:
    if theirs is None:
        return f"{ours:.2f}", "-", "-"
    return f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}"


def _note(one: TaskResult, cached: bool) -> str:
    facts: Mapping[str, Any] = one.facts
    prefixes = facts.get("prefixes", {})
    words = [str(facts["split"])] if "split" in facts else []
    if any(prefixes.values()):
        words.append("with prefixes")
    words += ["from cache"] if cached else []
    return ", ".join(words)
