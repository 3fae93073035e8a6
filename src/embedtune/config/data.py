"""Which pairs a run trains on, and which it holds out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from embedtune.checks import require, require_usable


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pairs to train on, which to hold out."""

    train: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN")] = ""
    """Question/passage pairs, or graded pairs (sentence1, sentence2, score): .jsonl, .json, .csv, .tsv or .parquet
    (each also .gz), a BEIR folder, a LlamaIndex JSON file, or a `datasets` hub id, OWNER/NAME[:CONFIG][@REVISION]."""
    test: str | None = None
    """Pairs to test on, in the same forms; without it a share of the training pairs is split off by passage."""
    dev: str | None = None
    """Pairs to choose the checkpoint on, in the same forms; without it a share of the training pairs is split off."""
    corpus: str | None = None
    """Further passages to search in at evaluation; no question needs to belong to them."""
    anchor_column: str | None = None
    """Column of the questions, if its name is not recognised."""
    positive_column: str | None = None
    """Column of the passages that answer them, if its name is not recognised."""
    negative_columns: tuple[str, ...] = ()
    """Columns of passages that don't answer the question, if their names are not recognised."""
    score_column: str | None = None
    """Column of labels (0 and 1) or of grades of how alike the two texts are, if its name is not recognised; none for
    reading no scores."""
    test_fraction: float = 0.1
    """Share of the pairs split off for the test, between 0 and 1."""
    dev_fraction: float = 0.1
    """Share of the remaining pairs split off to choose the checkpoint, between 0 and 1."""
    max_dev_pairs: int = 400
    """Most pairs that the split-off dev set takes from training."""
    near_duplicates: float = 0.6
    """Share of the shorter passage's five-word runs from which two passages count as one in splitting, up to 1; with 0
    only the same text does."""
    labels: str | None = None
    """The `suspects.jsonl` of a run with its "label" filled in: also, instead or no."""

    def __post_init__(self) -> None:
        require_usable(self)
        require(0 < self.test_fraction < 1, "test-fraction", self.test_fraction, "a number between 0 and 1")
        require(0 < self.dev_fraction < 1, "dev-fraction", self.dev_fraction, "a number between 0 and 1")
        require(self.max_dev_pairs >= 2, "max-dev-pairs", self.max_dev_pairs, "2 or more pairs")
        expected = "0 (off) or a number up to 1"
        require(0 <= self.near_duplicates <= 1, "near-duplicates", self.near_duplicates, expected)
