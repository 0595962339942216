"""Held-out metrics against their definitions, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stella_ray.learn.reading import Example
from stella_ray.pipeline.heldout import _HeldOut, recalls


def test_a_query_is_found_by_the_best_of_its_passages() -> None:
    queries = np.eye(3, dtype=np.float32)
    scores = np.array([[9, 8, 7, 1], [1, 5, 6, 7], [3, 3, 3, 0]], np.float32)
    found = recalls(queries, scores.T, [{0, 3}, {0}, {1}])
    # Ranks from 0: the first query's best passage 0; the second's 3; the third's none is better.
    assert found == {1: pytest.approx(2 / 3), 5: 1.0, 10: 1.0}


def test_equal_texts_are_one_and_the_same_passage() -> None:
    rows = [
        Example("问", "答 案", ["别的"], float("nan")),
        Example("问", "又一个", [], float("nan")),
        Example("二", "答案", [], float("nan")),
    ]
    held = _HeldOut("a", True, rows, ["问", "二"], ["答 案", "别的", "又一个", "答案"])
    assert held.relevant() == [{0, 2, 3}, {0, 3}]
