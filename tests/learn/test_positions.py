"""Hierarchical decomposition of positions, against the article's formula."""

from __future__ import annotations

import pytest
import torch

from stella_ray.errors import SettingsError
from stella_ray.learn.positions import extend_positions


def trained(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.9])
def test_every_position_is_the_articles_formula(alpha: float) -> None:
    p = trained(5)
    u = [(p[j] - alpha * p[0]) / (1 - alpha) for j in range(5)]
    wanted = torch.stack([alpha * u[i] + (1 - alpha) * u[j] for i in range(5) for j in range(5)])
    for positions in (6, 17, 25):
        torch.testing.assert_close(
            extend_positions(p, positions, alpha), wanted[:positions], rtol=0, atol=1e-14
        )


def test_up_to_twice_the_length_one_vector_is_added_to_all() -> None:
    p = trained(512)
    wanted = p + 0.25 * (p[1] - p[0])
    torch.testing.assert_close(extend_positions(p, 1024, 0.2)[512:], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_trained_positions_stay_bit_by_bit_in_any_type(dtype: torch.dtype) -> None:
    p = trained(64, dtype)
    out = extend_positions(p, 200, 0.2)
    assert out.dtype == dtype
    assert torch.equal(out[:64], p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_positions_are_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    p = trained(64, dtype)
    wanted = extend_positions(p.float(), 200, 0.2).to(dtype)
    assert torch.equal(extend_positions(p, 200, 0.2), wanted)


def test_all_positions_differ() -> None:
    out = extend_positions(trained(16), 256, 0.2)
    assert torch.pdist(out).min() > 1e-3


@pytest.mark.parametrize(
    ("positions", "alpha", "says"),
    [
        (8, 0.0, "alpha 0.0 isn't between 0 and 1"),
        (8, 1.0, "alpha 1.0 isn't"),
        (8, -0.2, "alpha -0.2 isn't"),
        (8, float("nan"), "alpha nan isn't"),
        (8, 0.5, "alpha 0.5 .*same vector"),
        (4, 0.2, "nothing to extend"),
        (3, 0.2, "positions 3 is below the 4"),
        (17, 0.2, r"positions 17 is above 4\^2 = 16"),
    ],
)
def test_what_can_not_be_extended_is_refused_with_the_reason(
    positions: int, alpha: float, says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        extend_positions(trained(4), positions, alpha)
