"""Two encoders side by side: what differs by more than chance.

Every difference is B's score minus A's over the same questions, with a 95% interval by the paired
bootstrap. Over the lines of each table p is adjusted by Holm's method (1979), which keeps the
chance that even one of the differences called real is noise at 5%, however many there are.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stella_ray.errors import CorpusError
from stella_ray.evaluate.bootstrap import RESAMPLES, Difference, paired, paired_mean
from stella_ray.evaluate.questions import BUCKETS, LONG_TEXT, UNKNOWN, bucket
from stella_ray.evaluate.results import TaskResult, Units

LEVEL = 0.05
POSITION_METRICS = ("recall@1", "recall@5")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the comparison: a task, a type's mean, or answers of one bucket.

    Attributes:
        name: the task's, the type's or the bucket's.
        type: of the task; a bucket's is the metric.
        metric: its name.
        a: A's score.
        b: B's.
        found: the difference and its interval; None where the score is made of no units.
        p: adjusted over the lines of its table; None without an interval.
        note: what a reader must know.
    """

    name: str
    type: str
    metric: str
    a: float
    b: float
    found: Difference | None = None
    p: float | None = None
    note: str = ""

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a

    @property
    def real(self) -> bool:
        """Whether it is more than noise."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two encoders' records of the tasks that both have.

    Attributes:
        a: A's name.
        b: B's.
        tasks: one a task.
        means: of each type and of all but long sets, plain means over tasks.
        positions: over all long sets, by where the answer begins; by metric and bucket.
        alone: tasks that only one has, or has of other data.
        resamples: of each interval.
    """

    a: str
    b: str
    tasks: list[Row]
    means: list[Row]
    positions: list[Row]
    alone: list[str]
    resamples: int = RESAMPLES

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        out = dataclasses.asdict(self)
        for kind in ("tasks", "means", "positions"):
            for row, told in zip(getattr(self, kind), out[kind], strict=True):
                told |= {"difference": row.difference, "more_than_noise": row.real}
        return out


def compare(
    a: Iterable[TaskResult],
    b: Iterable[TaskResult],
    names: tuple[str, str],
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two encoders' results by vectors; those by BM25 alone are nobody's.

    Args:
        a: A's records.
        b: B's.
        names: A's and B's.
        resamples: of each interval.

    Raises:
        CorpusError: they have no task in common, or records of one revision that can't be paired.
    """
    sides = [{one.task: one for one in side if one.ranking == "vectors"} for side in (a, b)]
    shared = [
        task
        for task, one in sides[0].items()
        if task in sides[1]
        and (one.revision, one.metric) == (sides[1][task].revision, sides[1][task].metric)
    ]
    alone = sorted((sides[0].keys() | sides[1].keys()) - set(shared))
    if not shared:
        raise CorpusError(
            f"{names[0]} and {names[1]} have no task of the same data in common; expected records"
            f" of the same tasks, found {', '.join(alone) or 'none'}"
        )
    pairs = [(sides[0][task], sides[1][task]) for task in shared]
    rows = [_task(one, other, resamples) for one, other in pairs]
    return Comparison(
        a=names[0],
        b=names[1],
        tasks=_adjusted(rows),
        means=_adjusted(_means(pairs, resamples)),
        positions=_adjusted(_positions(pairs, resamples)),
        alone=alone,
        resamples=resamples,
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for their number: the k-th smallest of n times n - k + 1, never falling."""
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(1, np.maximum.accumulate(raised))
    return [float(one) for one in out]


def _task(a: TaskResult, b: TaskResult, resamples: int) -> Row:
    row = Row(name=a.task, type=a.type, metric=a.metric, a=a.score, b=b.score)
    units = a.units.get(a.metric), b.units.get(a.metric)
    if units[0] is None or units[1] is None or not units[0].values:
        return dataclasses.replace(row, note="made of no units, so there is no interval")
    found = paired(units[0], units[1], resamples)
    left_out = f"{found.alone} units of one alone" if found.alone else ""
    note = ", ".join(word for word in (found.note, left_out) if word)
    return dataclasses.replace(row, found=found, p=found.p, note=note)


def _adjusted(rows: list[Row]) -> list[Row]:
    known = [number for number, row in enumerate(rows) if row.p is not None]
    adjusted = holm([rows[number].p or 0.0 for number in known])
    for number, p in zip(known, adjusted, strict=True):
        rows[number] = dataclasses.replace(rows[number], p=p)
    return rows


def _means(pairs: Sequence[tuple[TaskResult, TaskResult]], resamples: int) -> list[Row]:
    """Of each type, and of all; an interval only where every task is made of units.

    Long sets have a mean of their own: with C-MTEB's it would be comparable with nobody's.
    """
    groups: dict[str, list[tuple[TaskResult, TaskResult]]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].type, []).append(pair)
    short = [pair for pair in pairs if pair[0].type != LONG_TEXT]
    if len(groups.keys() - {LONG_TEXT}) > 1:
        groups = {f"all but {LONG_TEXT}" if LONG_TEXT in groups else "all": short, **groups}
    out = []
    for name, own in groups.items():
        row = Row(
            name=f"{name}, {len(own)} task{'s' if len(own) > 1 else ''}",
            type=name,
            metric="mean",
            a=float(np.mean([one.score for one, _ in own])),
            b=float(np.mean([other.score for _, other in own])),
        )
        units = [(one.units.get(one.metric), other.units.get(one.metric)) for one, other in own]
        whole = [(x, y) for x, y in units if x is not None and y is not None and x.values]
        if len(whole) == len(own):
            found = paired_mean(whole, resamples)
            row = dataclasses.replace(row, found=found, p=found.p, note=found.note)
        else:
            row = dataclasses.replace(
                row, note=f"{len(own) - len(whole)} of {len(own)} made of no units: no interval"
            )
        out.append(row)
    return out


def _positions(pairs: Sequence[tuple[TaskResult, TaskResult]], resamples: int) -> list[Row]:
    """Questions of all long sets together, by where the answer begins."""
    out = []
    long = [pair for pair in pairs if "starts" in pair[0].facts]
    for metric in POSITION_METRICS:
        for name in (*BUCKETS, UNKNOWN):
            a, b = (_inside([pair[side] for pair in long], metric, name) for side in (0, 1))
            if not a.values:
                continue
            found = paired(a, b, resamples)
            out.append(
                Row(
                    name=name,
                    type=metric,
                    metric=metric,
                    a=found.a,
                    b=found.b,
                    found=found,
                    p=found.p,
                    note=found.note,
                )
            )
    return out


def _inside(results: Sequence[TaskResult], metric: str, name: str) -> Units:
    names, values = [], []
    for one in results:
        units = one.units[metric]
        for own, value, start in zip(units.names, units.values, one.facts["starts"], strict=True):
            if bucket(start) == name:
                names.append(f"{one.task}\x1f{own}")
                values.append(value)
    return Units(names=names, values=values)


def percent(value: float, sign: bool = False) -> str:
    """A share or a correlation times 100, to two digits."""
    return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"


def ends(found: Difference | None) -> str:
    """The interval's ends."""
    return f"[{percent(found.low, True)}, {percent(found.high, True)}]" if found else "-"


def verdict(row: Row) -> str:
    """Better, worse, or no more than noise; B against A."""
    if row.p is None:
        return ""
    return ("B better" if row.difference > 0 else "A better") if row.real else "noise"


def as_text(found: Comparison, width: int = 110) -> str:
    """The tables for a terminal."""
    out = Console(file=io.StringIO(), width=width, color_system=None)
    names = f"A = {found.a}\nB = {found.b}\np is adjusted over each table's lines (Holm)"
    out.print(names, markup=False, highlight=False)
    for title, rows in (
        ("tasks", found.tasks),
        ("means over tasks", found.means),
        ("all long sets, by where the answer begins (characters)", found.positions),
    ):
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("", overflow="fold")
        table.add_column("metric")
        for name in ("A", "B", "B - A", "95% interval", "p", "units"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        for row in rows:
            numbers = (
                percent(row.a),
                percent(row.b),
                percent(row.difference, True),
                ends(row.found),
            )
            p = "-" if row.p is None else f"{row.p:.4f}"
            units = str(row.found.units) if row.found else "-"
            cells = (row.name, row.metric, *numbers, p, units, verdict(row))
            table.add_row(*map(Text, cells))  # names may hold what rich takes for markup
        out.print(table)
    if found.alone:
        out.print(f"not compared: {', '.join(found.alone)}", markup=False, highlight=False)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()
