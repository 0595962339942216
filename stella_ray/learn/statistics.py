"""Scores over rows, each row counted as often as a resample drew it.

A bootstrap needs a score of thousands of resamples of the same rows. A resample is a count a row,
so that ranks and places are sorted out once and what is left are sums (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 6.2). Counts of one are the score itself.

Counts are float64 [rows, resamples] and none of a resample's sums is 0; a row's counts lie together
in memory, since rows are what is put in another order here.
"""

from __future__ import annotations

import numpy as np


def mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the values, float64 [rows], in each resample, float64 [resamples]."""
    return np.asarray(values @ counts / counts.sum(0))


def spearman(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation in each resample, float64 [resamples]; 0 where a side is all equal.

    Equal numbers share the mean of their ranks.

    Args:
        values: float64 [rows].
        labels: float64 [rows].
        counts: float64 [rows, resamples].
    """
    a, b = _centred_ranks(values, counts), _centred_ranks(labels, counts)
    across = np.einsum("ij,ij,ij->j", counts, a, b)
    spread = np.einsum("ij,ij,ij->j", counts, a, a) * np.einsum("ij,ij,ij->j", counts, b, b)
    flat = spread <= 0
    return np.where(flat, 0.0, across / np.sqrt(np.where(flat, 1.0, spread)))


def average_precision(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average precision in each resample, float64 [resamples]; 0 where none is right.

    The sum over thresholds of precision times the recall that is gained, without interpolation;
    equal values are one threshold.

    Args:
        values: scores, higher for what is likely right, float64 [rows].
        labels: 1 where it is right, 0 elsewhere, [rows].
        counts: float64 [rows, resamples].
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    ordered = counts[order]
    found = ordered.cumsum(0)[ends]
    ordered *= (labels[order] > 0)[:, None]
    right = ordered.cumsum(0)[ends]
    gained = np.diff(right, axis=0, prepend=0)
    summed = np.einsum("ij,ij->j", right / np.maximum(found, 1), gained)
    return np.asarray(summed / np.maximum(right[-1], 1))


def _centred_ranks(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each row's rank in each resample less the mean of ranks, float64 [rows, resamples].

    Equal numbers share the mean of their ranks, so the mean of all is that of 1 … n, ties or none.
    """
    order = np.argsort(numbers, kind="stable")
    changes = np.diff(numbers[order]) != 0
    last = np.flatnonzero(np.append(changes, True))
    through = counts[order].cumsum(0)[last]
    shared = through.copy()  # twice the rank, less one
    shared[1:] += through[:-1]
    shared -= through[-1]
    group = np.empty(len(numbers), np.int64)
    group[order] = np.append(0, changes.cumsum())
    return np.asarray((shared / 2)[group])
