"""Which of the ranked passages are looked at, and which of these are too good to be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from embedtune.config import MiningConfig
from embedtune.mining.pool import KNOWN_ANSWER, NEAR_DUPLICATE, SAME_TEXT

SKIPPED, GIVEN, ABOVE_RATIO, WITHIN_MARGIN = "skipped", "given_already", "above_score_ratio", "within_score_margin"
REASONS = (KNOWN_ANSWER, NEAR_DUPLICATE, SAME_TEXT, SKIPPED, GIVEN, ABOVE_RATIO, WITHIN_MARGIN)
"""Why a candidate is refused, in the order asked; it is counted for the first that holds, once for each row."""


@dataclass(frozen=True)
class Window:
    """The candidates of one question that are looked at."""

    candidates: list[int]
    """Passage ids, the best first."""
    refused: Counter[str]
    """Reason to number of passages ranked among them."""


def look_at(ranked: Iterable[int], never: Mapping[int, str], *, depth: int, skip: int) -> Window:
    """The first `depth` passages that may be negatives, less the first `skip` of them.

    Args:
        ranked: passage ids, the best first.
        never: passage id to the reason why it is never a negative of this question; these are not counted.
        depth: candidates to look at.
        skip: how many of these to pass over.
    """
    looked_at: list[int] = []
    refused = Counter[str]()
    for passage in ranked:
        if len(looked_at) == depth:
            break
        if passage in never:
            refused[never[passage]] += 1
        else:
            looked_at.append(passage)
    refused[SKIPPED] = min(skip, len(looked_at))
    return Window(looked_at[skip:], refused)


def wrong_ones(
    window: Window, given: Container[int], scores: Mapping[int, float], positive: float, config: MiningConfig
) -> tuple[list[int], Counter[str]]:
    """The candidates that score so far below the positive that they hardly answer the question.

    With s the candidate's score and p the positive's, refused is s > p - (1 - max_score_ratio) |p|, which is
    s > max_score_ratio p for p > 0 (TopK-PercPos), and s > p - score_margin if that is set (TopK-MarginPos).
    The paper has no |p|; without it the bound of a positive that scores below 0 would lie above that score.

    p is the score of the row's own positive, also where the question has others. The lowest of them would be too
    strict: one answer that the model does not see, or a wrong label, would refuse the hard negatives of all rows. The
    highest would be too lax: beside a positive that scores low, passages above it would be pushed away, and that they
    score as answers do is the one sign there is of an unlabelled answer.

    Source: Moreira et al. 2024, "NV-Retriever", TopK-PercPos and TopK-MarginPos.

    Args:
        window: of the row's question.
        given: negatives that the row has already.
        scores: passage id to score, for the candidates.
        positive: score of the row's positive.
        config: the two bounds.

    Returns:
        The candidates left, the best first, and how many were refused.
    """
    left: list[int] = []
    refused = Counter(window.refused)
    for passage in window.candidates:
        if passage in given:
            refused[GIVEN] += 1
        elif scores[passage] > positive - (1 - config.max_score_ratio) * abs(positive):
            refused[ABOVE_RATIO] += 1
        elif config.score_margin > 0 and scores[passage] > positive - config.score_margin:
            refused[WITHIN_MARGIN] += 1
        else:
            left.append(passage)
    return left, refused
