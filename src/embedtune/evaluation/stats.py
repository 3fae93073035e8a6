"""How sure a difference between two models is, from the same queries asked to both.

Queries written about one passage rise and fall together, so what is sampled are groups of queries, not queries.
Interval, p-value and detectable difference all go by groups; without groups each query is one of its own.

The permutation test depends on the groups only through how often each sum of differences occurs, and rank metrics
take few values. So a resample is drawn as the count of each distinct sum instead of group by group: the same
distribution, at a cost that hardly grows with the number of queries.

Shapes: `Q` queries, `G` groups, `R` resamples of one batch, `V` distinct sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import FloatArray

DETECTABLE_ERRORS = 1.96 + 0.84
"""Standard errors between 0 and a true difference that a two-sided test at 5 % shows with a power of 80 %."""
_DRAWS_PER_BATCH = 2**20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Tuned minus base, in the unit of the metric; positive if tuned is better."""

    mean: float
    ci95: tuple[float, float]
    """95 % confidence interval of the mean, lower and upper end; without width if there is one group only."""
    p_value: float
    """Two-sided, above 0 and at most 1: how often equally good models would differ by this much."""
    detectable: float
    """Smallest true difference that a test set like this one shows with 80 % power at two-sided 5 %. 1, a metric's
    whole range, if there is one group only."""


def paired_difference(
    base_Q: FloatArray,
    tuned_Q: FloatArray,
    *,
    seed: int,
    groups_Q: IdArray | None = None,
    resamples: int = 10_000,
) -> Difference:
    """Mean difference over the queries, with an interval and a permutation p-value, the groups being the sample.

    The interval is Student's t for the mean of paired differences, with the standard error of the delete-one-group
    jackknife (Efron and Tibshirani 1993, chapter 11; for single queries that is the paired t interval). In
    simulations of differences as NDCG has them, most of them 0, it covers better than the percentile, BCa and
    studentised bootstraps below a few hundred queries and as well above; `docs/how-it-works.md` has the figures.
    Urbano et al. 2019 come to the same of tests. The p-value is the sign-flip permutation test (Smucker et al.
    2007), the queries of a group flipped together, with one added above and below, so that it is never 0 (Phipson
    and Smyth 2010).

    Args:
        base_Q: A metric of the base model, one value from 0 to 1 a query; so no end of the interval is beyond -1 or 1.
        tuned_Q: The same metric of the tuned model, for the same queries in the same order.
        seed: Of the permutations; the same seed gives the same result.
        groups_Q: Number of each query's group, any integers; each query is a group of its own if None.
        resamples: Number of permutations.

    Raises:
        ValueError: Shapes differ, there are no queries, a value is not finite, or `resamples` is below 1.
    """
    _check(base_Q, tuned_Q, groups_Q, resamples)
    differences_Q = np.asarray(tuned_Q, dtype=np.float64) - np.asarray(base_Q, dtype=np.float64)
    sums_G, sizes_G = _by_group(differences_Q, groups_Q)
    groups, mean = len(sums_G), float(differences_Q.mean())
    error = _standard_error(sums_G, sizes_G) if groups > 1 else 0.0
    margin = float(special.stdtrit(groups - 1, 0.975)) * error if groups > 1 else 0.0
    return Difference(
        mean=mean,
        ci95=(max(-1.0, mean - margin), min(1.0, mean + margin)),
        p_value=_sign_flip_p_value(sums_G, np.random.default_rng(seed), resamples),
        detectable=DETECTABLE_ERRORS * error if groups > 1 else 1.0,
    )


def _by_group(differences_Q: FloatArray, groups_Q: IdArray | None) -> tuple[FloatArray, IdArray]:
    """Sum of the differences and number of queries of each group."""
    if groups_Q is None:
        return differences_Q, np.ones(len(differences_Q), dtype=np.int64)
    _, places_Q, sizes_G = np.unique(groups_Q, return_inverse=True, return_counts=True)
    return np.bincount(places_Q, weights=differences_Q).astype(np.float64), sizes_G


def _standard_error(sums_G: FloatArray, sizes_G: IdArray) -> float:
    """Jackknife standard error of the mean over queries, a ratio of sums, leaving out one group at a time."""
    without_G = (sums_G.sum() - sums_G) / (sizes_G.sum() - sizes_G)
    groups = len(sums_G)
    return float(np.sqrt((groups - 1) / groups * ((without_G - without_G.mean()) ** 2).sum()))


def _sign_flip_p_value(sums_G: FloatArray, rng: np.random.Generator, resamples: int) -> float:
    """Share of random sign patterns over the groups whose sum is at least as far from 0 as the observed."""
    values_V, counts_V = np.unique(np.abs(sums_G), return_counts=True)
    # Sums that are equal in exact arithmetic must count as equal.
    threshold = abs(sums_G.sum()) - 1e-12 * np.abs(sums_G).sum()
    extreme = 0
    for size in _batch_sizes(resamples, len(values_V)):
        positive_RV = rng.binomial(counts_V, 0.5, size=(size, len(values_V)))
        sums_R = (2 * positive_RV - counts_V) @ values_V
        extreme += int((np.abs(sums_R) >= threshold).sum())
    return (extreme + 1) / (resamples + 1)


def _batch_sizes(resamples: int, values: int) -> Iterator[int]:
    """Sizes that add up to `resamples`, each bounding the draws (one per value and resample) in memory."""
    size = max(1, _DRAWS_PER_BATCH // values)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _check(base_Q: FloatArray, tuned_Q: FloatArray, groups_Q: IdArray | None, resamples: int) -> None:
    if base_Q.ndim != 1 or base_Q.shape != tuned_Q.shape or len(base_Q) == 0:
        raise ValueError(
            f"base: got shape {base_Q.shape}, tuned: got shape {tuned_Q.shape}, "
            "expected one value a query for both and at least one query"
        )
    if groups_Q is not None and groups_Q.shape != base_Q.shape:
        raise ValueError(f"groups: got shape {groups_Q.shape}, expected one number a query: {base_Q.shape}")
    if not (np.isfinite(base_Q).all() and np.isfinite(tuned_Q).all()):
        raise ValueError("a metric has NaN or infinite values; expected a finite number for every query")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
