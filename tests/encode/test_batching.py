"""The cutter of batches: every row once, no batch above the budget, little padding."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.encode.batching import batches
from stella_ray.errors import SettingsError

WINDOW, BUDGET = 4_096, 2_048
"""Of an encoder on a CPU; see encoder.ROWS_PER_WINDOW and forward.CPU_TOKEN_BUDGET."""
PACKED_BUDGET = 65_536
"""Only GPUs pack; see forward.CUDA_TOKEN_BUDGET."""


def cost(lengths: np.ndarray, *, packed: bool) -> int:
    """Tokens the device works on for one batch."""
    return int(lengths.sum() if packed else lengths.max() * len(lengths))


def corpus(rows: int = WINDOW) -> np.ndarray:
    """Lengths as a corpus of web text has them: most short, a few cut at 1,024."""
    drawn = np.random.default_rng(0).lognormal(mean=4.5, sigma=1.1, size=rows)
    return np.clip(drawn.astype(np.int64), 4, 1_024)


@st.composite
def windows(draw: Any) -> tuple[np.ndarray, int, bool]:
    lengths = np.array(draw(st.lists(st.integers(1, 300), max_size=200)), np.int64)
    longest = int(lengths.max()) if len(lengths) else 1
    return lengths, draw(st.integers(longest, 4 * longest + 50)), draw(st.booleans())


@given(windows())
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_exactly_one_batch_and_no_batch_is_above_the_budget(
    window: tuple[np.ndarray, int, bool],
) -> None:
    lengths, budget, packed = window
    cut = list(batches(lengths, budget, packed=packed))
    rows = np.concatenate([np.empty(0, np.int64), *cut])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert all(0 < cost(lengths[batch], packed=packed) <= budget for batch in cut)


@given(windows())
@settings(max_examples=60, deadline=None)
def test_the_longest_rows_come_first_and_a_batch_ends_only_where_it_is_full(
    window: tuple[np.ndarray, int, bool],
) -> None:
    lengths, budget, packed = window
    cut = list(batches(lengths, budget, packed=packed))
    in_order = np.concatenate([np.empty(0, np.int64), *(lengths[batch] for batch in cut)])
    assert (np.diff(in_order) <= 0).all()
    for batch, behind in itertools.pairwise(cut):
        one_more = np.append(lengths[batch], lengths[behind[0]])
        assert cost(one_more, packed=packed) > budget


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_equal_length_keep_their_order(packed: bool) -> None:
    lengths = np.tile([7, 9, 8], 50)
    cut = np.concatenate(list(batches(lengths, 63, packed=packed)))
    assert cut.tolist() == [*range(1, 150, 3), *range(2, 150, 3), *range(0, 150, 3)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_as_long_as_the_budget_is_a_batch_of_its_own(packed: bool) -> None:
    cut = list(batches(np.array([3, 512, 512]), 512, packed=packed))
    assert [batch.tolist() for batch in cut] == [[1], [2], [0]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_above_the_budget_is_refused_with_both_numbers(packed: bool) -> None:
    with pytest.raises(SettingsError, match="token_budget 512 can't hold a row of 513 tokens") as e:
        next(batches(np.array([3, 513, 8]), 512, packed=packed))
    assert "raise token_budget or lower max_tokens" in str(e.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64])
def test_no_rows_give_no_batches(packed: bool, kind: type) -> None:
    assert list(batches(np.empty(0, kind), 1, packed=packed)) == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_small_integer_types_do_not_overflow(packed: bool, kind: type) -> None:
    lengths = np.full(2_000, 200, kind)
    cut = list(batches(lengths, 65_536, packed=packed))
    assert [len(batch) for batch in cut] == [327] * 6 + [38]


def test_a_corpus_in_windows_has_little_padding_and_in_batches_as_read_has_a_lot() -> None:
    lengths = corpus()

    def padding(cut: list[np.ndarray]) -> float:
        """Share of the padded batches' tokens that are padding."""
        worked = sum(cost(lengths[batch], packed=False) for batch in cut)
        return 1 - int(lengths.sum()) / worked

    ours = padding(list(batches(lengths, BUDGET, packed=False)))
    as_read = padding(np.split(np.arange(WINDOW), WINDOW // 32))
    packed = list(batches(lengths, PACKED_BUDGET, packed=True))
    print(f"padding: {ours:.1%} in windows, {as_read:.1%} as read")
    assert ours < 0.02
    assert as_read > 0.65
    # Packed batches have no padding at all, and nearly fill their budget.
    assert int(lengths.sum()) / (len(packed) * PACKED_BUDGET) > 0.88
