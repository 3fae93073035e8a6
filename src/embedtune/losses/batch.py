"""What every loss is given, and what it is.

Shapes: `Q` rows of the batch, `P` its distinct passages, `E` embedding size, `G` the guide's embedding size, `A` known
answers, `C` passages that a teacher has scored for a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Guide(NamedTuple):
    """Embeddings of the same texts by which passages that look like answers are told; no gradient goes through them."""

    queries_QG: Tensor
    """Normalised, as those below."""
    passages_PG: Tensor
    margin: float = 0.0
    """A passage is no negative where it scores above the row's positive less this."""


class TeacherScores(NamedTuple):
    """What a teacher says of a row's own passages, the positive first, the hard negatives after it."""

    columns_QC: Tensor
    """Places among the batch's passages, int64; anything valid where nothing is given."""
    scores_QC: Tensor
    given_QC: Tensor
    """Bool: rows have different numbers of negatives, or no scores at all."""


class WordScores(NamedTuple):
    """What BM25 says of a batch."""

    scores_QP: Tensor
    """Of each row's question for each passage, none below 0."""
    weight: float
    """Of what is learned from them."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedBatch:
    """A batch of training rows as embeddings, and what is known of who answers whom."""

    queries_QE: Tensor
    """Normalised; one row for each training row, a question may come twice."""
    passages_PE: Tensor
    """Normalised; positives and hard negatives of all rows, each distinct one once."""
    positives_Q: Tensor
    """Column of each row's own positive, int64."""
    answers_2A: Tensor
    """Row of a question and column of a passage that is known to answer it, int64; own positives may be among them."""
    guide: Guide | None = None
    teacher: TeacherScores | None = None
    words: WordScores | None = None


Loss = Callable[[EmbeddedBatch], Tensor]
"""The mean over the rows of a batch, a scalar."""
Scale = Callable[[], float | Tensor]
"""The factor on the cosine similarities: a number, or a parameter's value."""
