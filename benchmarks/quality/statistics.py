"""Means over seeds, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Of one value a seed."""

    n: int
    mean: float
    half_width: float | None
    """Of the 95 % interval of the mean; None with one seed, which tells nothing of others."""
    deviation: float | None
    """Standard deviation between the seeds."""


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean with the interval of Student (1908): `mean ± t(0.975, n - 1) · s / sqrt(n)`; None without a value."""
    n = len(values)
    if n == 0:
        return None
    if n == 1:
        return Mean(n=1, mean=values[0], half_width=None, deviation=None)
    deviation = stdev(values)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Mean(n=n, mean=fmean(values), half_width=quantile * deviation / math.sqrt(n), deviation=deviation)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """One minus other, of each seed that both have."""
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def over_data(differences: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Each seed's mean over several data sets, of the seeds that all of them have."""
    common = set.intersection(*map(set, differences)) if differences else set()
    return {seed: fmean(values[seed] for values in differences) for seed in sorted(common)}
