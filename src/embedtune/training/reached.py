"""What the trainings of a run came to, counted as if they were one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from embedtune.training.checkpoint import Progress


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The trainings of a run, one after another; each began with the same weights."""

    members: Sequence[Progress]
    """How each went; at least one."""
    kept: Sequence[int]
    """Which of them, counted from 0, have a part in the weights that there are now; none if no step of any was better
    on the dev set than what they began with."""
    trainable: int
    """Parameters that each trained."""
    total: int
    """Parameters of the model."""

    @property
    def steps(self) -> int:
        """Optimiser steps of all of them."""
        return sum(member.step for member in self.members)

    @property
    def pairs(self) -> int:
        return sum(member.pairs for member in self.members)

    @property
    def tokens(self) -> int:
        return sum(member.tokens for member in self.members)

    @property
    def seconds(self) -> float:
        return sum(member.seconds for member in self.members)

    @property
    def best_step(self) -> int:
        """Of the best one, with the steps before it; 0 if nothing is kept."""
        if not self.kept:
            return 0
        best = max(range(len(self.members)), key=lambda number: self.members[number].best_metric)
        return self._first_steps[best] + self.members[best].best_step

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [loss for member in self.members for loss in member.losses]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """Dev metrics with their step, counted on; those before the first step are the same for all, and there once."""
        return [
            {**evaluation, "step": first + evaluation["step"]}
            for first, member in zip(self._first_steps, self.members, strict=True)
            for evaluation in member.evaluations
            if evaluation["step"] > 0 or first == 0
        ]

    @property
    def _first_steps(self) -> list[int]:
        """Steps before each."""
        return list(accumulate((member.step for member in self.members[:-1]), initial=0))
