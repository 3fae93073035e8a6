"""Which hard negatives are added to the training pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedtune.checks import require, require_choice, require_usable

DEFAULT_NEGATIVES = 2


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which passages of the training pairs become hard negatives of other questions."""

    hard_negatives: int | None = None
    """Negatives added to each pair; 0 adds none. If not given 2, and none where those that share a batch have one
    another's (`mined_batches`)."""
    mine_from: Literal["model", "bm25", "both"] = "model"
    """Where candidates come from: the passages that the model ranks best for the question, those that BM25 does, or
    both in turn."""
    mine_depth: int = 30
    """Best-ranked candidates looked at for each question; passages known to answer it are not counted."""
    mine_skip: int = 0
    """How many of these, from the best on, are passed over."""
    mine_sampling: Literal["top", "random"] = "top"
    """Of the candidates left, the best-ranked are taken, or some drawn by the seed."""
    max_score_ratio: float = 0.95
    """A candidate that scores above this share of the positive's score is taken for an answer that nobody labelled, and
    left out; a large one, such as 100, leaves out none."""
    score_margin: float = 0.0
    """With a number above 0, a candidate also has to score that much less than the positive."""
    judge: str | None = None
    """Hub id or folder of a cross-encoder whose scores (0 to 1) are compared in place of the model's; slower. A file of
    mined pairs has its logits as `scores`, for `train --distill`."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "mine_from")
        require_choice(self, "mine_sampling")
        if self.hard_negatives is not None:
            require(self.hard_negatives >= 0, "hard-negatives", self.hard_negatives, "0 or more")
        require(self.mine_depth >= 1, "mine-depth", self.mine_depth, "1 or more")
        below = f"0 or more and below --mine-depth, {self.mine_depth}"
        require(0 <= self.mine_skip < self.mine_depth, "mine-skip", self.mine_skip, below)
        left = f"at least --hard-negatives more than --mine-skip, {self.added + self.mine_skip}"
        require(self.added <= self.mine_depth - self.mine_skip, "mine-depth", self.mine_depth, left)
        require(self.max_score_ratio > 0, "max-score-ratio", self.max_score_ratio, "a number above 0, such as 0.95")
        require(self.score_margin >= 0, "score-margin", self.score_margin, "0 or more")

    @property
    def added(self) -> int:
        """Negatives added to each pair, where it is left open too."""
        return DEFAULT_NEGATIVES if self.hard_negatives is None else self.hard_negatives
