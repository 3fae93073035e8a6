"""The interval covers, the p-value is uniform without a difference, and both agree with SciPy.

Shapes: `Q` queries, `G` groups.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.stats import paired_difference


def reciprocal_ranks(rng: np.random.Generator, queries: int, power: float) -> FloatArray:
    """Values as MRR@10 gives them, higher for a lower power."""
    ranks = np.ceil(rng.random(queries) ** power * 12)
    return np.where(ranks <= 10, 1 / np.maximum(ranks, 1), 0.0)


def ndcg(ranks_Q: FloatArray) -> FloatArray:
    return np.where(ranks_Q <= 10, 1 / np.log2(ranks_Q + 1), 0.0)


def two_models(
    rng: np.random.Generator, groups: int, *, clusters: bool, gain: float
) -> tuple[FloatArray, FloatArray, IdArray]:
    """NDCG@10 of a base and a tuned model with one right passage a query, and each query's group.

    Some three in four differences are 0. With clusters a group has 1 to 10 queries, which share how hard their
    passage is to find and what tuning did to it.
    """
    sizes_G = np.minimum(rng.geometric(0.35, groups), 10) if clusters else np.ones(groups, dtype=np.int64)
    groups_Q = np.repeat(np.arange(groups), sizes_G)
    queries = len(groups_Q)
    hardness_Q = 1.2 * rng.normal(size=groups)[groups_Q] + 0.9 * rng.normal(size=queries)
    change_Q = rng.normal(gain, 0.6, groups)[groups_Q] + rng.normal(0, 0.8, queries)
    tuned_Q = hardness_Q - np.where(rng.random(queries) < 0.5, 0.0, change_Q)
    before_Q, after_Q = (ndcg(np.ceil(np.exp(1.5 * np.maximum(place_Q, 0)))) for place_Q in (hardness_Q, tuned_Q))
    return before_Q, after_Q, groups_Q


def test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    base_Q, tuned_Q = reciprocal_ranks(rng, 80, 1.0), reciprocal_ranks(rng, 80, 1.3)
    ours = paired_difference(base_Q, tuned_Q, seed=1, resamples=50_000)
    differences = (tuned_Q - base_Q,)
    interval = stats.ttest_rel(tuned_Q, base_Q).confidence_interval(0.95)
    p_value = stats.permutation_test(
        differences, np.mean, permutation_type="samples", n_resamples=50_000, batch=1000, rng=rng
    ).pvalue
    assert ours.mean == pytest.approx((tuned_Q - base_Q).mean())
    assert ours.ci95 == pytest.approx(tuple(interval), abs=1e-12)
    assert ours.p_value == pytest.approx(p_value, abs=0.01)
    assert 0.005 < p_value < 0.5


def test_the_p_value_of_a_few_queries_is_the_exact_one() -> None:
    """Of the 16 sign patterns of 1, 2, 3, 4 those with a sum of at least 8 either way are 4."""
    difference = paired_difference(np.zeros(4), np.array([-1.0, 2.0, 3.0, 4.0]), seed=0, resamples=100_000)
    assert difference.p_value == pytest.approx(4 / 16, abs=0.01)


@pytest.mark.parametrize(
    ("groups", "clusters", "gain"), [(50, False, 0.3), (50, True, 0.3), (200, False, 0.0), (200, True, 0.0)]
)
def test_the_interval_covers_the_truth(groups: int, clusters: bool, gain: float) -> None:
    """In 93 to 97 of 100 test sets; of 1,000 the share varies by 0.7 points."""
    before_Q, after_Q, _ = two_models(np.random.default_rng(99), 1_000_000, clusters=clusters, gain=gain)
    truth = (after_Q - before_Q).mean()
    rng, covered = np.random.default_rng(7), 0
    for _ in range(1000):
        base_Q, tuned_Q, groups_Q = two_models(rng, groups, clusters=clusters, gain=gain)
        low, high = paired_difference(base_Q, tuned_Q, seed=0, groups_Q=groups_Q, resamples=1).ci95
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize("clusters", [False, True])
def test_without_a_difference_the_p_value_is_uniform(clusters: bool) -> None:
    """Which model is called tuned is tossed for each group, so neither is better."""
    rng, p_values = np.random.default_rng(7), []
    for seed in range(1000):
        one_Q, other_Q, groups_Q = two_models(rng, 100, clusters=clusters, gain=0.3)
        swapped_Q = (rng.random(100) < 0.5)[groups_Q]
        base_Q, tuned_Q = np.where(swapped_Q, other_Q, one_Q), np.where(swapped_Q, one_Q, other_Q)
        p_values.append(paired_difference(base_Q, tuned_Q, seed=seed, groups_Q=groups_Q, resamples=400).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    for level in (0.01, 0.05, 0.2):
        allowed = stats.binom.ppf(0.999, 1000, level)
        assert sum(p_value <= level for p_value in p_values) <= allowed


def test_taking_questions_about_one_passage_for_independent_claims_too_much() -> None:
    """Five questions a passage that always go the same way are one observation, not five."""
    rng, alone, grouped = np.random.default_rng(3), 0, 0
    groups_Q = np.repeat(np.arange(40), 5)
    for seed in range(300):
        tuned_Q = rng.normal(size=40)[groups_Q]
        alone += paired_difference(np.zeros(200), tuned_Q, seed=seed, resamples=400).p_value <= 0.05
        grouped += (
            paired_difference(np.zeros(200), tuned_Q, seed=seed, groups_Q=groups_Q, resamples=400).p_value <= 0.05
        )
    assert grouped <= stats.binom.ppf(0.999, 300, 0.05)
    assert alone > 60


def test_groups_of_one_are_no_groups() -> None:
    rng = np.random.default_rng(4)
    base_Q, tuned_Q = rng.random(30), rng.random(30)
    single = paired_difference(base_Q, tuned_Q, seed=1, groups_Q=rng.permutation(30) * 7)
    plain = paired_difference(base_Q, tuned_Q, seed=1)
    assert (single.mean, single.p_value) == (plain.mean, plain.p_value)
    assert single.ci95 == pytest.approx(plain.ci95, abs=1e-12)


def test_groups_of_one_size_are_as_good_as_their_means() -> None:
    rng = np.random.default_rng(5)
    tuned_GS = rng.random((25, 4))
    grouped = paired_difference(np.full(100, 0.4), tuned_GS.ravel(), seed=1, groups_Q=np.repeat(np.arange(25), 4))
    means = paired_difference(np.full(25, 0.4), tuned_GS.mean(axis=1), seed=1)
    assert grouped.mean == pytest.approx(means.mean)
    assert grouped.ci95 == pytest.approx(means.ci95)
    assert grouped.p_value == pytest.approx(means.p_value, abs=0.01)


def test_a_difference_of_the_detectable_size_is_shown_four_times_out_of_five() -> None:
    rng, shown = np.random.default_rng(6), 0
    errors_Q = rng.normal(0, 0.3, 200)
    size = paired_difference(np.zeros(200), errors_Q, seed=0, resamples=1).detectable
    assert size == pytest.approx(2.8 * errors_Q.std(ddof=1) / np.sqrt(200))
    for seed in range(400):
        tuned_Q = rng.normal(size, errors_Q.std(ddof=1), 200)
        shown += paired_difference(np.zeros(200), tuned_Q, seed=seed, resamples=400).p_value <= 0.05
    assert 0.73 <= shown / 400 <= 0.87


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
    assert difference.detectable == 1.0
    one_group = paired_difference(np.zeros(9), np.full(9, 0.5), seed=0, groups_Q=np.full(9, 4))
    assert one_group == difference


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


def test_groups_of_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups: got shape \(3,\), expected one number a query: \(2,\)"):
        paired_difference(np.zeros(2), np.zeros(2), seed=0, groups_Q=np.arange(3))
