"""What two models' difference on the same items may be by chance: of a metric, or of a rank correlation with grades.

Shapes: `N` questions or pairs of texts.
"""

from __future__ import annotations

import numpy as np

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.run import Evaluation
from embedtune.evaluation.similarity import RESAMPLES, Similarity, rank_correlations
from embedtune.evaluation.stats import paired_difference

_VALUES_PER_BATCH = 2**20


def difference_interval(
    base_N: FloatArray,
    tuned_N: FloatArray,
    *,
    seed: int,
    grades_N: FloatArray | None = None,
    groups_N: IdArray | None = None,
) -> tuple[float, float]:
    """95 % interval of what the tuned model has more: of the mean of a metric, or of Spearman's correlation.

    Args:
        base_N: The metric of each question; with grades the similarity of each pair.
        tuned_N: The same of the tuned model, in the same order.
        seed: Of the resampling.
        grades_N: The pairs' grades.
        groups_N: Which questions belong together; each is one of its own if not given. Of no use with grades.
    """
    if grades_N is None:
        return paired_difference(base_N, tuned_N, seed=seed, groups_Q=groups_N).ci95
    return spearman_interval(base_N, tuned_N, grades_N, seed=seed)


def spearman_interval(
    base_N: FloatArray, tuned_N: FloatArray, grades_N: FloatArray, *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the difference of two rank correlations with the same grades, tuned minus base.

    Percentile bootstrap over the pairs of sentences, which are drawn with replacement and ranked anew each time (Efron
    and Tibshirani 1993, chapter 13). A draw of pairs that all have one grade, where there is no correlation, counts as
    no difference; that happens in sets of a few pairs only.

    Args:
        base_N: The base model's similarity of each pair.
        tuned_N: The tuned model's, in the same order.
        grades_N: The pairs' grades.
        seed: The same seed gives the same result.
        resamples: Number of draws.
    """
    rng = np.random.default_rng(seed)
    pairs = len(grades_N)
    size = max(1, _VALUES_PER_BATCH // pairs)
    differences = []
    for start in range(0, resamples, size):
        drawn_RN = rng.integers(0, pairs, (min(size, resamples - start), pairs))
        grades_RN = grades_N[drawn_RN]
        differences.append(
            rank_correlations(tuned_N[drawn_RN], grades_RN) - rank_correlations(base_N[drawn_RN], grades_RN)
        )
    low, high = np.quantile(np.concatenate(differences), (0.025, 0.975))
    return float(low), float(high)


def items_of(found: Evaluation | Similarity, metric: str) -> FloatArray:
    """The metric of each question; of graded pairs the cosines, whose order is what counts."""
    return found.cosines_N if isinstance(found, Similarity) else found.per_query[metric]
