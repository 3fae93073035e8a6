"""Which of the candidates left become negatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose(candidates: Sequence[int], count: int, *, at_random: bool, seed: int, row: int) -> tuple[int, ...]:
    """At most `count` of the candidates, the best-ranked first.

    Args:
        candidates: passage ids, the best first.
        count: how many are wanted.
        at_random: draw them, instead of taking the first.
        seed: of the draw.
        row: number of the row; each draws for itself, so that nothing depends on the rows before.
    """
    if not at_random or len(candidates) <= count:
        return tuple(candidates[:count])
    drawn = np.random.default_rng((seed, row)).choice(len(candidates), count, replace=False)
    return tuple(candidates[place] for place in sorted(drawn.tolist()))
