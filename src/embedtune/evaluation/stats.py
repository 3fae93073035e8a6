"""How sure a difference between two models is, from the same queries asked to both.

Both procedures depend on the differences only through how often each value occurs, and rank metrics take few
values. So a resample is drawn as the count of each distinct value instead of query by query: the same
distribution, at a cost that hardly grows with the number of queries.

Shapes: `Q` queries, `R` resamples of one batch, `V` distinct differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from embedtune.evaluation.metrics import FloatArray

_DRAWS_PER_BATCH = 2**20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Tuned minus base, in the unit of the metric; positive if tuned is better."""

    mean: float
    ci95: tuple[float, float]
    """95 % confidence interval of the mean, lower and upper end."""
    p_value: float
    """Two-sided, above 0 and at most 1: how often equally good models would differ by this much."""


def paired_difference(base_Q: FloatArray, tuned_Q: FloatArray, *, seed: int, resamples: int = 10_000) -> Difference:
    """Mean difference with a bootstrap interval and a permutation p-value, the queries being the sample.

    The interval is the percentile bootstrap of the mean over queries (Efron and Tibshirani 1993, chapter 13;
    for retrieval Sakai 2006). The p-value is the sign-flip permutation test (Smucker et al. 2007) with one
    added above and below, so that it is never 0 (Phipson and Smyth 2010). Queries are taken as independent of
    each other: where several were written about one passage, the interval is somewhat too narrow.

    Args:
        base_Q: A metric of the base model, one value a query.
        tuned_Q: The same metric of the tuned model, for the same queries in the same order.
        seed: The same seed gives the same result.
        resamples: Number of resamples of each of the two procedures.

    Raises:
        ValueError: Shapes differ, there are no queries, a value is not finite, or `resamples` is below 1.
    """
    _check(base_Q, tuned_Q, resamples)
    differences_Q = np.asarray(tuned_Q, dtype=np.float64) - np.asarray(base_Q, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = _bootstrap_means(differences_Q, rng, resamples)
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(
        mean=float(differences_Q.mean()),
        ci95=(float(low), float(high)),
        p_value=_sign_flip_p_value(differences_Q, rng, resamples),
    )


def _bootstrap_means(differences_Q: FloatArray, rng: np.random.Generator, resamples: int) -> FloatArray:
    """Means of `resamples` samples of Q queries drawn with replacement."""
    queries = len(differences_Q)
    values_V, counts_V = np.unique(differences_Q, return_counts=True)
    batches = [
        rng.multinomial(queries, counts_V / queries, size=size) @ values_V / queries
        for size in _batch_sizes(resamples, len(values_V))
    ]
    return np.concatenate(batches)


def _sign_flip_p_value(differences_Q: FloatArray, rng: np.random.Generator, resamples: int) -> float:
    """Share of random sign patterns over the queries whose sum is at least as far from 0 as the observed."""
    values_V, counts_V = np.unique(np.abs(differences_Q), return_counts=True)
    # Sums that are equal in exact arithmetic must count as equal.
    threshold = abs(differences_Q.sum()) - 1e-12 * np.abs(differences_Q).sum()
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


def _check(base_Q: FloatArray, tuned_Q: FloatArray, resamples: int) -> None:
    if base_Q.ndim != 1 or base_Q.shape != tuned_Q.shape or len(base_Q) == 0:
        raise ValueError(
            f"base: got shape {base_Q.shape}, tuned: got shape {tuned_Q.shape}, "
            "expected one value a query for both and at least one query"
        )
    if not (np.isfinite(base_Q).all() and np.isfinite(tuned_Q).all()):
        raise ValueError("a metric has NaN or infinite values; expected a finite number for every query")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
