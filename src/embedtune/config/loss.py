"""What a step makes smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedtune.checks import require, require_choice, require_usable


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What a step makes smaller."""

    loss: Literal["auto", "contrastive", "cosent"] = "auto"
    """Contrastive for questions and passages, CoSENT for graded pairs: a higher grade is to have a higher cosine; auto
    takes what fits the data."""
    scale: float = 20.0
    """Factor on the cosine similarities in the loss, the inverse of the temperature."""
    both_directions: bool = False
    """Also rank the batch's questions for each passage."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "loss")
        require(self.scale > 0, "scale", self.scale, "a number above 0, such as 20")
