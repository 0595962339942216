"""More positions for a trained encoder, by hierarchical decomposition (Su Jianlin, kexue.fm/7947).

Legend: N trained positions, M positions asked for, D numbers of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stella_ray.errors import SettingsError


def check_extension(trained: int, positions: int, alpha: float) -> None:
    """Check that `trained` positions can become `positions` with this alpha.

    Raises:
        SettingsError: in one line, with the reason.
    """
    if not 0 < alpha < 1:
        raise SettingsError(
            f"alpha {alpha} isn't between 0 and 1; expected 0.2 (stella) or 0.4 (the article)"
        )
    if alpha == 0.5:
        raise SettingsError(
            "alpha 0.5 gives position i*n+j and position j*n+i the same vector, so that the model"
            " couldn't tell them apart; expected another, 0.2 (stella) or 0.4 (the article)"
        )
    if positions == trained:
        raise SettingsError(f"positions {positions}: the model has as many, nothing to extend")
    if positions < trained:
        raise SettingsError(
            f"positions {positions} is below the {trained} that the model has; expected more"
        )
    if positions > trained**2:
        raise SettingsError(
            f"positions {positions} is above {trained}^2 = {trained**2}, where the decomposition"
            " ends; expected that or fewer"
        )


def extend_positions(rows_ND: Tensor, positions: int, alpha: float) -> Tensor:
    """Position vectors for `positions` places, of which the first N are `rows_ND` bit by bit.

    With u_j = (p_j - alpha p_0) / (1 - alpha), position i*N + j is alpha u_i + (1 - alpha) u_j.
    Since u_0 = p_0, the first N come out as they were; they are copied, so that rounding can't
    touch them. Up to 2N that is p_j + alpha / (1 - alpha) (p_1 - p_0): one vector added to all.

    Args:
        rows_ND: the trained vectors, any float type; 16-bit ones are computed with in float32.
        positions: M, more than N and at most N^2.
        alpha: share of the coarse part; the smaller, the nearer new positions are to trained ones.

    Returns:
        [M, D] in the type of `rows_ND`.

    Raises:
        SettingsError: see `check_extension`.
    """
    trained = len(rows_ND)
    check_extension(trained, positions, alpha)
    exact = torch.promote_types(rows_ND.dtype, torch.float32)
    base_ND = (rows_ND.to(exact) - alpha * rows_ND[:1].to(exact)) / (1 - alpha)
    new = torch.arange(trained, positions)
    coarse, fine = new // trained, new % trained
    new_rows = alpha * base_ND[coarse] + (1 - alpha) * base_ND[fine]
    return torch.cat([rows_ND, new_rows.to(rows_ND.dtype)])
