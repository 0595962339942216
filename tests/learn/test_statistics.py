"""Scores over rows against scipy and scikit-learn; counted rows against rows that are repeated."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ConstantInputWarning, spearmanr
from sklearn.metrics import average_precision_score

from stella_ray.learn.statistics import average_precision, mean, spearman

ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 3)), min_size=3, max_size=30
).filter(lambda rows: sum(count for *_, count in rows) > 0)


def columns(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, labels, counts = (np.array(side, float) for side in zip(*rows, strict=True))
    return values, labels, counts.astype(int)


def once(score: Callable[..., np.ndarray], values: np.ndarray, labels: np.ndarray) -> float:
    return float(score(values, labels, np.ones((len(values), 1)))[0])


@given(ROWS)
def test_spearman_is_scipys(rows: list[tuple[int, int, int]]) -> None:
    values, labels, _ = columns(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        wanted = np.nan_to_num(spearmanr(values, labels).statistic)
    assert once(spearman, values, labels) == pytest.approx(wanted, abs=1e-9)


@given(ROWS)
def test_average_precision_is_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    values, labels, _ = columns(rows)
    wanted = average_precision_score(labels, values) if labels.any() else 0
    assert once(average_precision, values, labels) == pytest.approx(wanted, abs=1e-9)


@given(ROWS)
def test_a_row_that_counts_twice_is_a_row_that_stands_there_twice(
    rows: list[tuple[int, int, int]],
) -> None:
    values, labels, counts = columns(rows)
    again = np.repeat(np.arange(len(rows)), counts)
    for score in (spearman, average_precision):
        found = float(score(values, labels, counts[:, None].astype(float))[0])
        assert found == pytest.approx(once(score, values[again], labels[again]), abs=1e-9)
    assert mean(values, counts[:, None].astype(float))[0] == pytest.approx(values[again].mean())
