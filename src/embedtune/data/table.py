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


@dataclass(frozen=True, slots=True)
class Row:
    """One question with one passage, as found: a value may be anything the file holds."""

    anchor: object
    positive: object
    negatives: tuple[object, ...] = ()
    grade: float = 1.0
    """How well the passage answers the question; above zero."""
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
