"""What is known of a trial once it is over, as a line of `trials.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["finished", "pruned", "failed"]
"""Trained to its end; stopped as hopeless; or ended by an error."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training."""

    number: int | None
    """From 0 on, the default recipe; None for a repeat of it."""
    state: State
    values: Mapping[str, float]
    """Of the dials, by their options."""
    seed: int
    metric: float | None
    """The best dev metric among the evaluations, if it was trained to its end."""
    dev: Sequence[float]
    """The dev metric at each evaluation, the first one before the first step."""
    steps: int = 0
    """Up to the last evaluation."""
    best_step: int = 0
    seconds: float = 0.0
    """Of the whole trial: loading, training, evaluations."""
    reason: str | None = None
    """What ended a failed trial."""


def to_lines(trials: Sequence[Trial]) -> str:
    """The content of `trials.jsonl`."""
    return "".join(json.dumps(asdict(trial), ensure_ascii=False, allow_nan=False) + "\n" for trial in trials)
