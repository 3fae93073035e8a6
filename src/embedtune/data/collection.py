"""The texts of a job, each distinct one once, and the rows that refer to them by number.

Everything after reading works with these integer ids, so "the same passage" is an integer comparison wherever it
matters: splitting, batching, masking in the loss, evaluation.

Shapes: `N` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.int64]


@dataclass(kw_only=True)
class Collection:
    """Distinct questions and passages, and which passages are known to answer which question.

    A text's id is its position in `queries` or `passages`.
    """

    queries: list[str] = field(default_factory=list)
    """Distinct questions, as first seen."""
    passages: list[str] = field(default_factory=list)
    """Distinct passages of all files, positives, negatives and corpus alike, as first seen."""
    qrels: dict[int, dict[int, float]] = field(default_factory=dict)
    """Query id to {passage id: grade}; grades are above zero. Joined over all the files given."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Training or test rows as ids into a `Collection`."""

    query_ids: IdArray
    """Shape (N,)."""
    passage_ids: IdArray
    """The positive of each row, shape (N,)."""
    negative_ids: tuple[tuple[int, ...], ...]
    """Hard negatives of each row, N tuples, possibly empty and of different lengths."""
    row_ids: tuple[str, ...]
    """The `id` of each row as saved with the splits, N strings."""
    scores: tuple[tuple[float, ...], ...] | None = None
    """A teacher's scores: of each row's positive, then of its negatives in order; an empty tuple where there are none.
    """

    def __len__(self) -> int:
        return len(self.row_ids)

    def select(self, rows: Sequence[int] | IdArray) -> Pairs:
        """The given rows, in the given order."""
        picked = np.asarray(rows, dtype=np.int64)
        return Pairs(
            query_ids=self.query_ids[picked],
            passage_ids=self.passage_ids[picked],
            negative_ids=tuple(self.negative_ids[row] for row in picked),
            row_ids=tuple(self.row_ids[row] for row in picked),
            scores=None if self.scores is None else tuple(self.scores[row] for row in picked),
        )
