"""Permutations and choices that are functions of their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from stella_ray.learn.shuffle import SORTED_UP_TO, hashes, key_of, permuted, shares


@pytest.mark.parametrize("count", [1, 2, 7, SORTED_UP_TO, SORTED_UP_TO + 1, 10_000, 1 << 16])
def test_every_row_comes_exactly_once(count: int) -> None:
    assert sorted(permuted(np.arange(count), count, key_of("a"))) == list(range(count))


@pytest.mark.parametrize("count", [50, 10_000])
def test_a_place_alone_gives_what_it_gives_among_all(count: int) -> None:
    all_of_it = permuted(np.arange(count), count, 3)
    assert permuted(np.array([17]), count, 3)[0] == all_of_it[17]
    assert np.array_equal(permuted(np.array([40, 2]), count, 3), all_of_it[[40, 2]])


@pytest.mark.parametrize("count", [1_000, 10_000])
def test_keys_give_orders_that_have_nothing_to_do_with_each_other(count: int) -> None:
    a, b = (permuted(np.arange(count), count, key_of("seed", k)) for k in range(2))
    for x, y in ((a, b), (a, np.arange(count)), (a[1:], a[:-1])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / count**0.5


def test_three_rows_come_in_each_of_their_six_orders_about_equally_often() -> None:
    orders = [tuple(permuted(np.arange(3), 3, key_of(k))) for k in range(1_200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 140


def test_shares_are_spread_evenly() -> None:
    found = shares(np.arange(10_000), key_of("share"))
    assert np.histogram(found, 10, (0, 1))[0].min() > 880


def test_the_numbers_are_the_same_for_ever() -> None:
    """A run that was begun with another version must go on with the same batches."""
    assert key_of(7, "pairs", 0) == 4189806195285245006
    assert hashes(np.arange(2), 1).tolist() == [6238072747940578789, 10451216379200822465]
    assert permuted(np.arange(5), 100_000, 9).tolist() == [40664, 74901, 72991, 40012, 53649]
