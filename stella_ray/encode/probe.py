"""How many tokens a GPU wants in a batch: found by trying, not by its name."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, LAST = 8_192, 524_288
"""Tokens of the smallest and of the largest batch tried."""

NEAR = 0.98
"""Of the best rate: a smaller batch that reaches it leaves memory to others, and wastes less at the
end of a window."""

LONGEST = 5.0
"""Seconds after which no larger batch is tried."""


def find_budget(
    seconds_of: Callable[[int], float | None], least: int, first: int = FIRST, last: int = LAST
) -> int:
    """The smallest token budget with which the device works near its best rate.

    1. Double the batch until it doesn't fit, two doublings brought nothing, or time is up. 2. Take
    the smallest that was within `NEAR` of the best.

    Args:
        seconds_of: what a full batch of so many tokens takes; None where it doesn't fit.
        least: tokens that a batch must hold, the longest row's.
        first: tokens of the first batch.
        last: tokens of the last.

    Returns:
        Tokens; `least` where nothing that was tried fits.
    """
    began, tokens, rates = time.monotonic(), max(least, first), dict[int, float]()
    while seconds := seconds_of(tokens):
        rates[tokens] = tokens / seconds
        best = max(rates, key=rates.__getitem__)
        late = time.monotonic() - began > LONGEST
        if late or tokens >= 4 * best or 2 * tokens > last:
            break
        tokens *= 2
    near = NEAR * max(rates.values(), default=0.0)
    return next((tokens for tokens, rate in rates.items() if rate >= near), least)
