"""The bootstrap against scipy's, and against what must hold of any paired interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from stella_ray.errors import CorpusError
from stella_ray.evaluate import bootstrap
from stella_ray.evaluate.bootstrap import interval, paired, paired_mean, score_of
from stella_ray.evaluate.results import Units


def hits(seed: int, share: float, count: int = 200) -> Units:
    found = np.random.default_rng(seed).random(count) < share
    return Units(names=[f"q{i}" for i in range(count)], values=found.astype(float).tolist())


def scored(seed: int, noise: float, statistic: str = "spearman", count: int = 300) -> Units:
    labels = np.random.default_rng(0).integers(0, 2 if statistic != "spearman" else 6, count)
    values = labels + noise * np.random.default_rng(seed).normal(size=count)
    return Units(
        statistic=statistic,  # type: ignore[arg-type]
        names=[str(i) for i in range(count)],
        values=values.tolist(),
        labels=labels.astype(float).tolist(),
    )


def test_the_interval_of_a_paired_difference_is_scipys() -> None:
    a, b = hits(1, 0.6), hits(2, 0.7)
    ours = paired(a, b)
    gaps = np.array(b.values) - np.array(a.values)
    theirs = scipy_bootstrap(
        (gaps,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert ours.difference == pytest.approx(gaps.mean())
    # Two runs of 10,000 resamples differ by about this much at their ends.
    assert ours.low == pytest.approx(theirs.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.high, abs=0.006)


def test_the_interval_of_one_score_is_scipys() -> None:
    units = hits(3, 0.8)
    theirs = scipy_bootstrap(
        (np.array(units.values),), np.mean, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert interval(units) == pytest.approx((theirs.low, theirs.high), abs=0.006)


@pytest.mark.parametrize("statistic", ["spearman", "average_precision"])
def test_scores_that_are_no_means_are_taken_anew_over_each_resample(statistic: str) -> None:
    a, b = scored(1, 2.0, statistic), scored(2, 0.7, statistic)
    ours = paired(a, b, resamples=2_000)
    assert (ours.a, ours.b) == pytest.approx((score_of(a), score_of(b)))
    dice, gaps = np.random.default_rng(5), []
    for _ in range(2_000):
        at = dice.integers(0, 300, 300)
        sides = [
            Units(
                statistic=u.statistic,
                names=[],
                values=[u.values[i] for i in at],
                labels=[u.labels[i] for i in at],
            )
            for u in (a, b)
        ]
        gaps.append(score_of(sides[1]) - score_of(sides[0]))
    assert (ours.low, ours.high) == pytest.approx(np.percentile(gaps, [2.5, 97.5]), abs=0.015)
    assert ours.low > 0
    assert ours.p < 0.01


def test_noise_is_called_noise_about_as_often_as_promised() -> None:
    """Of 200 pairs that differ by chance alone, about one in twenty has a p below 0.05."""
    below = sum(paired(hits(2 * i, 0.7, 100), hits(2 * i + 1, 0.7, 100), 500).p < 0.05
                for i in range(200))  # fmt: skip
    assert 2 <= below <= 22


def test_the_order_of_units_changes_nothing_and_the_seed_is_fixed() -> None:
    a, b = hits(1, 0.5), hits(2, 0.6)
    turned = [Units(names=one.names[::-1], values=one.values[::-1]) for one in (a, b)]
    assert paired(a, b) == paired(a, turned[1]) == paired(turned[0], b)


def test_an_encoder_against_itself_differs_by_nothing() -> None:
    found = paired(hits(1, 0.5), hits(1, 0.5))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_units_that_only_one_has_are_left_out_and_counted() -> None:
    a = Units(names=["x", "y", "z"], values=[1, 0, 1])
    b = Units(names=["y", "w", "x"], values=[1, 1, 0])
    found = paired(a, b)
    assert (found.a, found.b, found.units, found.alone) == (0.5, 0.5, 2, 2)
    assert "only 2 units" in found.note


def test_a_mean_over_tasks_has_a_narrower_interval_than_its_tasks() -> None:
    tasks = [(hits(10 * i, 0.6), hits(10 * i + 1, 0.65)) for i in range(6)]
    together = paired_mean(tasks)
    each = [paired(*task) for task in tasks]
    assert together.difference == pytest.approx(np.mean([one.difference for one in each]))
    assert together.high - together.low < min(one.high - one.low for one in each)
    assert together.units == 1_200


def test_records_of_other_data_are_refused() -> None:
    with pytest.raises(CorpusError, match="no unit in common"):
        paired(Units(names=["a"], values=[1]), Units(names=["b"], values=[1]))
    with pytest.raises(CorpusError, match="a mean, the other's a spearman"):
        paired(hits(1, 0.5), scored(1, 1.0))
    other = scored(2, 1.0)
    with pytest.raises(CorpusError, match="other labels"):
        paired(scored(1, 1.0), Units(**{**vars(other), "labels": other.labels[::-1]}))


def test_blocks_of_resamples_change_no_result_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paired(hits(1, 0.5), hits(2, 0.6), 100)
    monkeypatch.setattr(bootstrap, "CELLS_AT_ONCE", 200 * 7)
    assert paired(hits(1, 0.5), hits(2, 0.6), 100) == whole
