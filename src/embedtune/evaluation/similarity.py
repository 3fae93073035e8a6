"""How well a model's cosines agree with the grades of pairs: rank correlation, correlation, and how sure they are.

Shapes: `N` graded pairs, `E` embedding size, `G` groups of pairs, `R` rows that are correlated at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.stats import DETECTABLE_ERRORS, Difference
from embedtune.models.encoder import Encoder

RESAMPLES = 2_000
"""Of the interval of a difference between two rank correlations, each of which ranks all pairs anew."""
_PAIRS_PER_BATCH = 2**14


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """What a model makes of graded pairs."""

    cosines_N: FloatArray
    grades_N: FloatArray

    @property
    def means(self) -> dict[str, float]:
        """ "spearman" and "pearson", the correlations of the cosines with the grades."""
        return {name: float(value[0]) for name, value in _both(self.cosines_N[None], self.grades_N[None]).items()}


def measure_similarity(
    encoder: Encoder,
    pairs: Pairs,
    first: TokenTable,
    second: TokenTable,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Similarity:
    """The cosines of graded pairs, each distinct text embedded once.

    Args:
        encoder: the model.
        pairs: N of them, with grades.
        first: tokens of the texts that `pairs.query_ids` numbers.
        second: those of `pairs.passage_ids`.
        on_progress: called with the number of texts done after each batch; `texts_in_pairs` is how many there are.
    """
    assert pairs.grades is not None
    cosines_N = np.empty(len(pairs))
    first_ids, firsts_N = np.unique(pairs.query_ids, return_inverse=True)
    second_ids, seconds_N = np.unique(pairs.passage_ids, return_inverse=True)
    first_FE = encoder.embed_all(first, first_ids, on_progress=on_progress).double()
    second_SE = encoder.embed_all(second, second_ids, on_progress=on_progress).double()
    for start in range(0, len(pairs), _PAIRS_PER_BATCH):
        part = slice(start, start + _PAIRS_PER_BATCH)
        products_NE = first_FE[firsts_N[part]] * second_SE[seconds_N[part]]
        cosines_N[part] = products_NE.sum(dim=1).cpu().numpy()
    return Similarity(cosines_N=cosines_N, grades_N=pairs.grades)


def texts_in_pairs(pairs: Pairs) -> int:
    """How many texts `measure_similarity` embeds."""
    return len(np.unique(pairs.query_ids)) + len(np.unique(pairs.passage_ids))


def compare_similarity(
    base: Similarity, tuned: Similarity, *, seed: int, groups_N: IdArray | None = None, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Tuned minus base in both correlations, with a paired interval and p-value.

    Percentile bootstrap (Efron and Tibshirani 1993, chapter 13): groups of pairs that share a text are drawn with
    replacement, and both models' cosines of what was drawn are correlated anew. The p-value is twice the share of draws
    on the other side of 0, with one added above and below, so it agrees with the interval. A draw with one grade only
    counts as no difference.

    Args:
        base: what to compare with.
        tuned: another model's cosines of the same pairs.
        seed: of the draws; the same seed gives the same result.
        groups_N: number of each pair's group; each pair is one of its own if None.
        resamples: number of draws.

    Raises:
        ValueError: the two are of different pairs.
    """
    if not np.array_equal(base.grades_N, tuned.grades_N):
        raise ValueError(
            f"base has {len(base.grades_N)} pairs and tuned {len(tuned.grades_N)}, and their grades are not the same; "
            "measure both on one test"
        )
    pairs = len(base.grades_N)
    groups, of_pair_N = np.unique(np.arange(pairs) if groups_N is None else groups_N, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in base.means}
    for _ in range(resamples):
        times_G = np.bincount(rng.integers(0, len(groups), len(groups)), minlength=len(groups))
        drawn = np.repeat(np.arange(pairs), times_G[of_pair_N])
        before, after = (_both(one.cosines_N[None, drawn], one.grades_N[None, drawn]) for one in (base, tuned))
        for name, values in draws.items():
            values.append(float(after[name][0] - before[name][0]))
    return {
        name: _difference(tuned.means[name] - base.means[name], np.array(values), groups=len(groups))
        for name, values in draws.items()
    }


def rank_correlations(values_RN: FloatArray, grades_RN: FloatArray) -> FloatArray:
    """Spearman's of each row, ties sharing their mean rank; 0 where all of a row is one value."""
    return correlations(rankdata(values_RN, axis=1), rankdata(grades_RN, axis=1))


def correlations(values_RN: FloatArray, grades_RN: FloatArray) -> FloatArray:
    """Pearson's of each row; 0 where all of a row is one value."""
    values_RN, grades_RN = (each - each.mean(axis=1, keepdims=True) for each in (values_RN, grades_RN))
    together_R = (values_RN * grades_RN).sum(axis=1)
    apart_R = np.sqrt((values_RN**2).sum(axis=1) * (grades_RN**2).sum(axis=1))
    found_R: FloatArray = np.divide(together_R, apart_R, out=np.zeros(len(apart_R)), where=apart_R > 0)
    return found_R


def _both(values_RN: FloatArray, grades_RN: FloatArray) -> dict[str, FloatArray]:
    return {"spearman": rank_correlations(values_RN, grades_RN), "pearson": correlations(values_RN, grades_RN)}


def _difference(mean: float, draws: FloatArray, *, groups: int) -> Difference:
    if groups < 2:  # every draw is the same
        return Difference(mean=mean, ci95=(mean, mean), p_value=1.0, detectable=1.0)
    low, high = np.quantile(draws, (0.025, 0.975))
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(
        mean=mean,
        ci95=(float(low), float(high)),
        p_value=min(1.0, 2 * (beyond + 1) / (len(draws) + 1)),
        detectable=DETECTABLE_ERRORS * float(draws.std()),
    )
