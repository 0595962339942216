"""The one cutter of batches: rows of similar length together, no batch above its token budget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stella_ray.errors import SettingsError


def batches(lengths: np.ndarray, token_budget: int, *, packed: bool) -> Iterator[np.ndarray]:
    """Cut a window of rows into batches, longest first.

    A padded batch costs `longest x rows` tokens, a packed one the sum of its tokens.

    Args:
        lengths: tokens of each row, int [rows].
        token_budget: the most tokens a batch may cost.
        packed: whether the encoder packs rows back to back instead of padding them.

    Yields:
        The row numbers of a batch, int64.

    Raises:
        SettingsError: a single row is over the budget.
    """
    # Longest first: the first batch needs the most memory, so a budget too large fails at once.
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    if len(order) and lengths[order[0]] > token_budget:
        raise SettingsError(
            f"token_budget {token_budget} can't hold a row of {lengths[order[0]]} tokens;"
            " raise token_budget or lower max_tokens"
        )
    start = 0
    total = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    while start < len(order):
        if packed:
            end = int(np.searchsorted(total, total[start] + token_budget, side="right")) - 1
        else:  # the order is longest first, so a batch's width is its first row's
            end = start + token_budget // max(1, int(lengths[order[start]]))
        yield order[start:end]
        start = min(end, len(order))
