"""The interval covers, the p-value is uniform without a difference, and both agree with SciPy.

Shapes: `Q` queries.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.stats import paired_difference


def reciprocal_ranks(rng: np.random.Generator, queries: int, power: float) -> FloatArray:
    """Values as MRR@10 gives them, higher for a lower power."""
    ranks = np.ceil(rng.random(queries) ** power * 12)
    return np.where(ranks <= 10, 1 / np.maximum(ranks, 1), 0.0)


def test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    base_Q, tuned_Q = reciprocal_ranks(rng, 80, 1.0), reciprocal_ranks(rng, 80, 1.3)
    ours = paired_difference(base_Q, tuned_Q, seed=1, resamples=50_000)
    differences = (tuned_Q - base_Q,)
    interval = stats.bootstrap(
        differences, np.mean, method="percentile", n_resamples=50_000, batch=1000, rng=rng
    ).confidence_interval
    p_value = stats.permutation_test(
        differences, np.mean, permutation_type="samples", n_resamples=50_000, batch=1000, rng=rng
    ).pvalue
    assert ours.mean == pytest.approx((tuned_Q - base_Q).mean())
    assert ours.ci95 == pytest.approx(tuple(interval), abs=0.002)
    assert ours.p_value == pytest.approx(p_value, abs=0.01)
    assert 0.005 < p_value < 0.5


def test_the_p_value_of_a_few_queries_is_the_exact_one() -> None:
    """Of the 16 sign patterns of 1, 2, 3, 4 those with a sum of at least 8 either way are 4."""
    difference = paired_difference(np.zeros(4), np.array([-1.0, 2.0, 3.0, 4.0]), seed=0, resamples=100_000)
    assert difference.p_value == pytest.approx(4 / 16, abs=0.01)


def test_the_interval_covers_the_truth_and_the_p_value_is_uniform() -> None:
    rng = np.random.default_rng(7)
    covered, p_values = 0, []
    for seed in range(300):
        base_Q, tuned_Q = reciprocal_ranks(rng, 200, 1.0), reciprocal_ranks(rng, 200, 1.0)
        difference = paired_difference(base_Q, tuned_Q, seed=seed, resamples=1000)
        covered += difference.ci95[0] <= 0 <= difference.ci95[1]
        p_values.append(difference.p_value)
    assert 0.92 <= covered / 300 <= 0.98
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_a_clear_gain_is_certain_but_never_impossible_by_chance() -> None:
    base_Q = np.linspace(0, 0.5, 100)
    difference = paired_difference(base_Q, base_Q + 0.2, seed=0, resamples=1000)
    assert difference.p_value == pytest.approx(1 / 1001)
    assert difference.ci95 == pytest.approx((0.2, 0.2))
    worse = paired_difference(base_Q + 0.2, base_Q, seed=0, resamples=1000)
    assert worse.mean == pytest.approx(-0.2)
    assert worse.p_value == pytest.approx(1 / 1001)


def test_equal_models_differ_by_nothing() -> None:
    difference = paired_difference(np.full(50, 0.3), np.full(50, 0.3), seed=0)
    assert (difference.mean, difference.ci95, difference.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_one_query_proves_nothing() -> None:
    difference = paired_difference(np.array([0.25]), np.array([0.75]), seed=0)
    assert (difference.mean, difference.ci95, difference.p_value) == (0.5, (0.5, 0.5), 1.0)


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(3)
    base_Q, tuned_Q = rng.random(60), rng.random(60)
    assert paired_difference(base_Q, tuned_Q, seed=5) == paired_difference(base_Q, tuned_Q, seed=5)
    assert paired_difference(base_Q, tuned_Q, seed=5) != paired_difference(base_Q, tuned_Q, seed=6)


@pytest.mark.parametrize(
    ("base_Q", "tuned_Q", "resamples", "message"),
    [
        (np.zeros(3), np.zeros(4), 10, r"base: got shape \(3,\), tuned: got shape \(4,\)"),
        (np.zeros(0), np.zeros(0), 10, "at least one query"),
        (np.zeros((2, 2)), np.zeros((2, 2)), 10, "one value a query"),
        (np.zeros(2), np.array([0.0, np.nan]), 10, "NaN"),
        (np.zeros(2), np.zeros(2), 0, "resamples: got 0"),
    ],
)
def test_input_that_does_not_fit_is_refused(
    base_Q: FloatArray, tuned_Q: FloatArray, resamples: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(base_Q, tuned_Q, seed=0, resamples=resamples)
