"""What other models say of the training rows before the training: a teacher's scores, a guide's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from embedtune.config import LossConfig, ModelConfig
from embedtune.data.collection import Pairs
from embedtune.data.prepare import Splits
from embedtune.losses.build import ITSELF
from embedtune.models.source import named
from embedtune.progress import Reporter
from embedtune.training.guide import GuideTable, guide_table
from embedtune.training.random_state import random_state_kept
from embedtune.training.teacher import taught


class Advice(NamedTuple):
    """The training rows, and what the loss knows of them beside."""

    pairs: Pairs
    """With the scores that the loss takes."""
    guide: GuideTable | None
    keep: Callable[[], None] | None
    """Writes a teacher's scores into the run's folder, which may not be there yet; None if they are in it."""


def ask_advisers(splits: Splits, loss: LossConfig, model: ModelConfig, *, folder: Path, reporter: Reporter) -> Advice:
    """Have the loss's teacher score the training rows, and its guide embed them; the random state stays as it is.

    Args:
        splits: from `prepare`.
        loss: which models are asked, if any.
        model: how they are computed; their names are the loss's.
        folder: of the run; scores that it holds are not made again.
        reporter: is told how it goes.

    Raises:
        DataError: there is nothing to distill.
        ModelError: the guide or the teacher can't be used.
    """
    guide = None
    with random_state_kept():
        rows = taught(splits.train, splits.collection, loss, model, folder=folder, reporter=reporter)
        if loss.guide is not None and loss.guide != ITSELF:
            guide = guide_table(
                named(model, loss.guide), rows.pairs, splits.collection, margin=loss.guide_margin, reporter=reporter
            )
    return Advice(rows.pairs, guide, rows.keep)
