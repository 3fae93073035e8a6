"""What is measured beside the base and the tuned model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedtune.checks import require, require_choice, require_usable


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured beside the base and the tuned model, and what is made of it."""

    against: tuple[str, ...] = ()
    """Further models to measure on the same questions and passages: hub ids (OWNER/NAME, OWNER/NAME@REVISION) or
    folders."""
    forgetting: tuple[str, ...] = ()
    """Files that tell what the model forgot, beside the built-in sets: graded pairs of sentences (sentence1, sentence2,
    score), or questions and passages in the forms of TRAIN."""
    blend: float | Literal["auto"] = 1.0
    """Weight of the tuned model in what is saved, from 0 (the base) to 1; auto takes the one recommended on the dev set
    and the forgetting sets."""
    accept: Literal["clear", "any"] = "clear"
    """Which gain on the dev set makes the tuned model the saved one, and not the base: clear, one above 1.64 of
    its standard errors; any, however small."""

    def __post_init__(self) -> None:
        require_usable(self)
        require_choice(self, "accept")
        in_range = isinstance(self.blend, (int, float)) and not isinstance(self.blend, bool) and 0 <= self.blend <= 1
        require(self.blend == "auto" or in_range, "blend", self.blend, "a number from 0 to 1, or auto")
