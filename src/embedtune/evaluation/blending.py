"""How much of the fine-tuning to keep: the models between base and tuned, measured on dev and on what may be forgotten.

Shapes: `Q` dev queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from embedtune.data.collection import IdArray
from embedtune.evaluation.forgetting import SetScores, mean_score, measure
from embedtune.evaluation.general import GeneralSet
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.noise import difference_interval, items_of
from embedtune.evaluation.run import Evaluation
from embedtune.evaluation.similarity import Similarity, rank_correlations
from embedtune.models.blend import blends
from embedtune.models.encoder import Encoder

WEIGHTS = (0.0, 0.5, 0.75, 0.9, 1.0)
CLEAR_ERRORS = 1.645
"""Standard errors that a clear gain is above: one-sided, 95 %."""
KEPT_GAIN = 0.9
"""Share of the best gain on dev that the recommended weight has, whatever is within noise of it."""


@dataclass(frozen=True, kw_only=True)
class BlendPoint:
    """What the model of one weight reached."""

    weight: float
    """0 is the base, 1 the tuned model."""
    dev_Q: FloatArray
    """The dev metric, query by query; of graded pairs the cosines."""
    forgetting: float
    """Mean score on the forgetting sets; higher is better."""
    grades_Q: FloatArray | None = None
    """Of graded dev pairs, with whose order the cosines' is compared."""
    groups_Q: IdArray | None = None
    """Of dev questions, which of them belong together (`RetrievalTask.groups_Q`)."""

    @property
    def dev(self) -> float:
        if self.grades_Q is None:
            return float(self.dev_Q.mean())
        return float(rank_correlations(self.dev_Q[None], self.grades_Q[None])[0])


def blend_curve(
    encoder: Encoder,
    evaluate_dev: Callable[[Encoder], Evaluation | Similarity],
    sets: Sequence[GeneralSet],
    *,
    metric: str,
    weights: Sequence[float] = WEIGHTS,
    known: Mapping[float, tuple[Evaluation | Similarity, Sequence[SetScores]]] | None = None,
    into_original: bool = False,
    groups_Q: IdArray | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[BlendPoint]:
    """Measure the models between base and tuned, one after another. The test set has no part in it.

    Args:
        encoder: The trained one.
        evaluate_dev: Evaluates an encoder on the dev set.
        sets: What may be forgotten, from `general_sets`.
        metric: Of the dev set.
        weights: Which models; ascending.
        known: By weight, what a model is known to reach on dev and on the sets: it is not measured again.
        into_original: As in `Encoder.merged`.
        groups_Q: Which dev questions belong together; each is one of its own if not given.
        on_done: Called with 1 after each weight that is measured.
    """
    reached = dict(known or {})
    for weight, blend in blends(encoder, [w for w in weights if w not in reached], into_original=into_original):
        reached[weight] = evaluate_dev(blend), measure(blend, sets)
        if on_done is not None:
            on_done(1)
    return [_point(weight, *reached[weight], metric, groups_Q) for weight in weights]


def _point(
    weight: float, dev: Evaluation | Similarity, general: Sequence[SetScores], metric: str, groups_Q: IdArray | None
) -> BlendPoint:
    return BlendPoint(
        weight=weight,
        dev_Q=items_of(dev, metric),
        forgetting=mean_score(general),
        grades_Q=dev.grades_N if isinstance(dev, Similarity) else None,
        groups_Q=groups_Q,
    )


def recommend(points: Sequence[BlendPoint], *, seed: int) -> float:
    """The weight to keep, by dev and forgetting sets alone.

    Of all weights that

    - are within noise of the one with the best dev metric: the 95 % interval of the paired difference reaches 0, and
    - keep at least `KEPT_GAIN` of its gain over the lowest weight, so that a dev set too small to tell anything apart
      does not hand back the base,

    the one with the best mean score on the forgetting sets; of equal ones that with the better dev metric, then the
    higher weight.

    Args:
        points: Measured on the same dev queries; the lowest weight is the one that gains are counted from.
        seed: Of the resampling.

    Raises:
        ValueError: There are no points.
    """
    if not points:
        raise ValueError("got no points, expected at least one")
    base = min(points, key=lambda point: point.weight)
    best = max(points, key=lambda point: (point.dev, point.weight))
    enough = base.dev + KEPT_GAIN * (best.dev - base.dev)
    fit = [point for point in points if point is best or (point.dev >= enough and _within_noise(point, best, seed))]
    return max(fit, key=lambda point: (point.forgetting, point.dev, point.weight)).weight


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a model has more on dev than the one of the lowest weight."""

    mean: float
    ci95: tuple[float, float]
    """95 % confidence interval of the mean."""
    error: float
    """Its standard error; 0 if that can't be told, as all questions belong together."""

    @property
    def clear(self) -> bool:
        """Whether it is above what noise comes to in nineteen of twenty cases."""
        return self.mean > CLEAR_ERRORS * self.error

    def facts(self) -> dict[str, Any]:
        """What `results.json` says of it."""
        return {"mean": self.mean, "ci95": list(self.ci95), "error": self.error}


def gain(points: Sequence[BlendPoint], *, seed: int) -> Gain:
    """What the model of the highest weight gains on dev over the one of the lowest.

    Raises:
        ValueError: There are no points.
    """
    if not points:
        raise ValueError("got no points, expected at least one")
    base, tuned = (pick(points, key=lambda point: point.weight) for pick in (min, max))
    low, high = _interval(base, tuned, seed)
    errors = 1.96  # half of the interval; Student's t has more where there are few groups
    if base.groups_Q is not None:
        errors = float(special.stdtrit(max(1, len(np.unique(base.groups_Q)) - 1), 0.975))
    return Gain(mean=tuned.dev - base.dev, ci95=(low, high), error=(high - low) / 2 / errors)


def blend_facts(points: Sequence[BlendPoint], *, metric: str, used: float, seed: int) -> dict[str, Any]:
    """For the results: the curve, the recommended weight, and the one of the model that was saved."""
    curve = [{"weight": point.weight, "dev": point.dev, "forgetting": point.forgetting} for point in points]
    return {"metric": metric, "points": curve, "recommended": recommend(points, seed=seed), "used": used}


def _within_noise(point: BlendPoint, best: BlendPoint, seed: int) -> bool:
    low, high = _interval(best, point, seed)
    return low <= 0 <= high


def _interval(one: BlendPoint, other: BlendPoint, seed: int) -> tuple[float, float]:
    """95 % interval of what the other one has more on dev."""
    return difference_interval(one.dev_Q, other.dev_Q, seed=seed, grades_N=one.grades_Q, groups_N=one.groups_Q)
