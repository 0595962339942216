"""Scores over rows, each row counted as often as a resample drew it.

A bootstrap needs a score of thousands of resamples of the same rows. A resample is a count a row,
so that ranks and places are sorted out once and what is left are sums (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 6.2). Counts of one are the score itself.
"""

from __future__ import annotations

import numpy as np


def mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of each resample, float64 [resamples].

    Args:
        values: float64 [rows].
        counts: how often each resample has each row, [resamples, rows]; not all 0.
    """
    return np.asarray(counts @ values / counts.sum(1))


def spearman(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each resample, float64 [resamples]; 0 where a side is all equal.

    Equal numbers share the mean of their ranks.

    Args:
        values: float64 [rows].
        labels: float64 [rows].
        counts: how often each resample has each row, [resamples, rows]; not all 0.
    """
    weights = counts.astype(np.float64)
    total = weights.sum(1, keepdims=True)
    a, b = (_ranks(side, weights) for side in (values, labels))
    # The mean of ranks 1 … n is the same for both sides, ties or none.
    a -= (total + 1) / 2
    b -= (total + 1) / 2
    across = np.einsum("ij,ij,ij->i", weights, a, b)
    spread = np.einsum("ij,ij,ij->i", weights, a, a) * np.einsum("ij,ij,ij->i", weights, b, b)
    flat = spread <= 0
    return np.where(flat, 0.0, across / np.sqrt(np.where(flat, 1.0, spread)))


def average_precision(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average precision of each resample, float64 [resamples]; 0 where none is right.

    The sum over thresholds of precision times the recall that is gained, without interpolation;
    equal values are one threshold.

    Args:
        values: scores, higher for what is likely right, float64 [rows].
        labels: 1 where it is right, 0 elsewhere, [rows].
        counts: how often each resample has each row, [resamples, rows].
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    weights = counts[:, order].astype(np.float64)
    found = weights.cumsum(1)[:, ends]
    right = (weights * (labels[order] > 0)).cumsum(1)[:, ends]
    precision = right / np.maximum(found, 1)
    gained = np.diff(right, axis=1, prepend=0)
    return np.asarray((precision * gained).sum(1) / np.maximum(right[:, -1], 1))


def _ranks(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row's rank in each resample, equal numbers sharing the mean of theirs."""
    order = np.argsort(numbers, kind="stable")
    group = np.append(0, (np.diff(numbers[order]) != 0).cumsum())
    last = np.flatnonzero(np.append(np.diff(group), 1))
    through = weights[:, order].cumsum(1)[:, last]
    before = np.concatenate([np.zeros((len(weights), 1)), through[:, :-1]], axis=1)
    shared = (before + through + 1) / 2
    of_row = np.empty(len(numbers), np.int64)
    of_row[order] = group
    return np.asarray(shared[:, of_row])
