"""What a reader hands over: rows as they were found, before any cleaning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "dev", "test"]

SPLIT_ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "val", "valid"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Columns:
    """The columns to read, as asked for or as resolved; `None` leaves it to the columns' names."""

    anchor: str | None = None
    """The column of the questions."""
    positive: str | None = None
    """The column of the passages that answer them."""
    negatives: tuple[str, ...] = ()
    """The columns of hard negatives."""
    score: str | None = None
    """The column of labels or grades; asked for as "none" if no score is to be read."""
    teacher: tuple[str, ...] = ()
    """The column of a teacher's scores, a list a row; or those of the positive and of each negative."""
    scores_apart: bool = False
    """Whether `teacher` names a column for each text."""
    sentences: bool = False
    """Whether the two texts of a row are sentences that play the same part."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question with one passage, as found: a value may be anything the file holds."""

    anchor: object
    positive: object
    negatives: tuple[object, ...] = ()
    grade: float = 1.0
    """How well the passage answers the question, zero if it does not; in a graded table how alike the two are."""
    scores: tuple[float, ...] = ()
    """A teacher's scores, of the positive and then of the negatives; empty without any."""
    id: str = ""
    """The file's own id of the row, if it has one."""
    origin: str = ""
    """Where the row stands, for messages: `train.jsonl:17`."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of one source."""

    rows: list[Row]
    source: str
    """The source as typed."""
    passages: list[object] = field(default_factory=list)
    """Further passages to search in, without a question of their own: the corpus of a BEIR folder."""
    columns: Columns = Columns()
    """The columns the rows come from; empty for sources without columns (BEIR, LlamaIndex)."""
    graded: bool = False
    """Whether the rows are graded pairs, of which none is right or wrong."""
    note: str = ""
    """What the score column was understood as, part of a sentence."""
    warning: str = ""
    """What the user should look at, a sentence."""


def pick_split(found: Collection[str], wanted: Split) -> str | None:
    """The name in `found` that is the wanted split; the only name if there is just one; else `None`."""
    for name in SPLIT_ALIASES[wanted]:
        if name in found:
            return name
    return next(iter(found)) if len(found) == 1 else None


def known_splits(found: Collection[str]) -> frozenset[str]:
    """Which of train, dev and test are among `found`; none if `found` has one name only.

    A source with a single split has nothing to choose from: `pick_split` gives that split whatever is asked
    for, so counting it as a test split of its own would test on the training rows.
    """
    if len(found) < 2:
        return frozenset()
    return frozenset(split for split, names in SPLIT_ALIASES.items() if any(name in found for name in names))
