"""How far chance alone moves a score or a difference: the bootstrap over a task's units.

Both encoders answered the same questions, so a resample draws questions, and each encoder's score
is taken over the same ones: what makes a question hard for both falls out of the difference.
Intervals are the middle 95% of 10,000 resamples (the percentile method: Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 13 and 16). They tell what other questions of the same
kind would do, not what other training data, another seed or another domain would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stella_ray.errors import CorpusError
from stella_ray.evaluate.results import Units
from stella_ray.learn.statistics import average_precision, mean, spearman

RESAMPLES = 10_000
FEW = 30
"""Units below which an interval is said to be rough."""

CELLS_AT_ONCE = 1 << 19
"""Of counts, resamples times units: 4 MiB in float64, and a few times that beside."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two encoders' scores, B's minus A's.

    Attributes:
        a: A's score over the units that both have.
        b: B's.
        low: where the middle 95% of resampled differences begin.
        high: where they end.
        p: two-sided: how often resampling turns the difference's sign, twice; at least 1 / 10,001.
        units: how many both have; of an average those of all tasks.
        alone: units that only one of the two has, left out.
        note: what makes the interval doubtful, if anything does.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    units: int
    alone: int = 0
    note: str = ""

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a


def score_of(units: Units) -> float:
    """The units' statistic."""
    return float(_scores(units, np.ones((len(units.values), 1)))[0])


def interval(units: Units, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The middle 95% of a score over resampled units; NaN twice where there are none.

    Where all units are equal so are its ends, however few there are: of n questions that were all
    found, up to 3 / n may still be missing in truth (the rule of three).
    """
    if not units.values:
        return float("nan"), float("nan")
    drawn = _draws(len(units.values), resamples, seed)
    low, high = np.percentile(np.concatenate([_scores(units, c) for c in drawn]), [2.5, 97.5])
    return float(low), float(high)


def paired(a: Units, b: Units, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Compare two encoders' units of one task, over those that both have.

    Args:
        a: of encoder A.
        b: of encoder B.
        resamples: how many.
        seed: equal seeds, equal results.

    Raises:
        CorpusError: they aren't of the same task or data.
    """
    return paired_mean([(a, b)], resamples, seed)


def paired_mean(
    tasks: Sequence[tuple[Units, Units]], resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare the plain mean of several tasks' scores; each task's own units are resampled.

    Args:
        tasks: A's and B's units of each, at least one.
        resamples: how many.
        seed: equal seeds, equal results.

    Raises:
        CorpusError: two aren't of the same task or data.
    """
    drawn = np.zeros((2, resamples))
    ends = np.zeros(2)
    fewest, count, alone = np.inf, 0, 0
    for number, (a, b) in enumerate(tasks):
        both, left_out = _matched(a, b)
        own = len(both[0].values)
        counts = _draws(own, resamples, seed + number)
        found = [[_scores(side, block) for side in both] for block in counts]
        drawn += np.concatenate([np.stack(pair) for pair in found], axis=1) / len(tasks)
        ends += np.array([score_of(side) for side in both]) / len(tasks)
        fewest, count, alone = min(fewest, own), count + own, alone + left_out
    gaps = drawn[1] - drawn[0]
    low, high = np.percentile(gaps, [2.5, 97.5])
    # One more on both sides: the sample at hand counts as a resample, and p is never 0.
    less, more = (np.count_nonzero(side) + 1 for side in (gaps <= 0, gaps >= 0))
    note = f"only {int(fewest)} units, so the interval is rough" if fewest < FEW else ""
    return Difference(
        a=float(ends[0]),
        b=float(ends[1]),
        low=float(low),
        high=float(high),
        p=float(min(1.0, 2 * min(less, more) / (resamples + 1))),
        units=count,
        alone=alone,
        note=note,
    )


def _matched(a: Units, b: Units) -> tuple[tuple[Units, Units], int]:
    """Both sides' units of the names that both have, by name; and how many others there are."""
    if a.statistic != b.statistic:
        raise CorpusError(
            f"one record's score is a {a.statistic}, the other's a {b.statistic}; expected records"
            " of one task"
        )
    places = {name: at for at, name in enumerate(b.names)}
    own = {name: at for at, name in enumerate(a.names)}
    shared = [(own[name], places[name]) for name in sorted(own.keys() & places.keys())]
    if not shared:
        raise CorpusError(
            f"the records have no unit in common ({len(a.names)} and {len(b.names)}); expected the"
            " same questions: evaluate both encoders on the same data and settings"
        )
    sides = []
    for which, units in enumerate((a, b)):
        rows = [pair[which] for pair in shared]
        labels = [units.labels[row] for row in rows] if units.labels else []
        sides.append(
            Units(
                statistic=units.statistic,
                names=[units.names[row] for row in rows],
                values=[units.values[row] for row in rows],
                labels=labels,
            )
        )
    if sides[0].labels != sides[1].labels:
        raise CorpusError(
            "the records have the same units with other labels; expected records of the same data"
        )
    return (sides[0], sides[1]), len(a.names) + len(b.names) - 2 * len(shared)


def _draws(units: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each resample has each unit, float64 [units, some resamples], in blocks."""
    dice = np.random.default_rng([units, seed])
    at_once = min(resamples, max(1, CELLS_AT_ONCE // units))
    for first in range(0, resamples, at_once):
        block = min(at_once, resamples - first)
        drawn = dice.integers(0, units, (block, units)) * block + np.arange(block)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=units * block)
        yield counts.reshape(units, block).astype(np.float64)


def _scores(units: Units, counts: np.ndarray) -> np.ndarray:
    values = np.array(units.values, np.float64)
    if units.statistic == "mean":
        return mean(values, counts)
    labels = np.array(units.labels, np.float64)
    score = spearman if units.statistic == "spearman" else average_precision
    return score(values, labels, counts)
