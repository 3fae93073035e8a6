"""Which evaluation's weights are kept: the latest that is not worse than the best by more than noise.

The best of several is so by chance too, and what is trained longer is better where the dev set can't tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from embedtune.training.checkpoint import Progress


class Measured(NamedTuple):
    """What an evaluation on the dev set found."""

    metrics: Mapping[str, float]
    items: Sequence[float] = ()
    """What each question, or pair of texts, has a part in the deciding metric with; empty where that is not known."""


Worse = Callable[[Sequence[float], Sequence[float]], bool]
"""Whether an evaluation with the first items is worse than one with the second by more than noise."""


def count_evaluation(progress: Progress, found: Measured, *, metric: str, worse: Worse | None) -> None:
    """Note an evaluation of the step that the progress is at, and whether its weights are the ones to keep.

    Nothing is kept of a training before an evaluation is above that before its first step.

    Args:
        progress: of the training.
        found: by the evaluation.
        metric: that decides.
        worse: without it the best evaluation counts, the first of equal ones.
    """
    value = found.metrics[metric]
    progress.evaluations.append({"step": progress.step, **found.metrics})
    if value > progress.highest_metric:
        progress.highest_metric, progress.highest_items = value, list(found.items)
        progress.evaluations_without_gain = 0
        keep = True
    else:
        progress.evaluations_without_gain += 1
        keep = progress.best_step > 0 and worse is not None and not worse(found.items, progress.highest_items)
    if keep:
        progress.best_metric, progress.best_step = value, progress.step
