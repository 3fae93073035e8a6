"""Scores in a file: labels of what does and does not answer, grades of how alike two texts are, a teacher's scores.

A score column that is read past makes a positive of every row, also of those that it calls wrong. So a column of that
name is never passed over: it is understood, or refused with what to type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embedtune.data.records import Record
from embedtune.data.table import Columns
from embedtune.errors import DataError, brief, quoted

NO_COLUMN = "none"
"""Given as --score-column, it means that no score is read."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What the score column of a source says."""

    kind: Literal["labels", "grades"] | None = None
    """Whether a row's passage answers its question; or how alike its two texts are; None without scores."""
    values: Sequence[float] | None = None
    """Of each record: 0 or 1 for labels, 0 to 1 for grades."""
    note: str = ""
    """What was understood, as part of a sentence."""
    warning: str = ""
    """What the user should look at, a sentence."""


def scoring(records: Sequence[Record], columns: Columns, source: str, *, given: bool) -> Scoring:
    """Decide what the score column means: labels if all of it is 0 or 1, else grades; of sentence pairs always grades.

    Grades outside 0 to 1 are brought there by their lowest and highest.

    Args:
        records: what the file holds.
        columns: as resolved.
        source: as typed, for messages.
        given: whether the user named the column.

    Raises:
        DataError: some rows have no number there, or the numbers can't be understood safely.
    """
    if columns.score is None:
        return Scoring()
    found = [number(record.fields.get(columns.score)) for record in records]
    named = f"'{source}': the column '{brief(columns.score)}'"
    otherwise = f"To read no score, and take every row's passage as right, type:  --score-column {NO_COLUMN}"
    if not (given or columns.sentences) and all(value is None for value in found):
        return _no_numbers(records, columns.score, named)
    values = [_required(value, record, columns.score, otherwise) for value, record in zip(found, records, strict=True)]
    distinct = set(values)
    if distinct <= {0.0, 1.0} and not columns.sentences:
        if distinct == {0.0}:
            raise DataError(f"{named} is 0 in all {len(values):,} rows, so none answers its question. {otherwise}")
        answers = int(sum(values))
        note = f"'{columns.score}': {answers:,} rows labelled 1, {len(values) - answers:,} labelled 0"
        return Scoring(kind="labels", values=values, note=note)
    _refuse_unclear(distinct, columns, named, otherwise, given=given)
    low, high = min(distinct), max(distinct)
    graded = f"grades from {low:g} to {high:g}: '{columns.score}'"
    warning = "" if columns.sentences or given else f"{named} was taken as grades from {low:g} to {high:g}. {otherwise}"
    if low >= 0 and high <= 1:
        return Scoring(kind="grades", values=values, note=graded, warning=warning)
    normalised = [(value - low) / (high - low) for value in values]
    return Scoring(kind="grades", values=normalised, note=graded, warning=warning)


def teacher_scores(record: Record, columns: Columns, negatives: Sequence[tuple[object, ...]]) -> tuple[float, ...]:
    """A teacher's scores of a row's positive and of its negatives in order; empty if the row has none.

    Args:
        record: the row.
        columns: as resolved; one in `teacher` holds a list, several hold a score each.
        negatives: the cells of each negative column, missing texts as `None`.

    Raises:
        DataError: there are more or fewer than one for the positive and one for each negative, or one is no number.
    """
    if not columns.teacher:
        return ()
    cells = [record.fields.get(name) for name in columns.teacher]
    if all(cell is None or cell == "" or cell == [] for cell in cells):
        return ()
    expected = 1 + sum(text is not None for texts in negatives for text in texts)
    if len(columns.teacher) == 1 and not columns.scores_apart:
        return _counted(cells[0], expected, record, columns.teacher[0])
    scores = [*_counted(cells[0], 1, record, columns.teacher[0])]
    for name, cell, texts in zip(columns.teacher[1:], cells[1:], negatives, strict=True):
        present = [text is not None for text in texts]
        if cell is None or cell == "":
            cell = []
        scores += _counted(cell, sum(present), record, name)
    return tuple(scores)


def number(value: object) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    try:
        found = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _counted(cell: object, expected: int, record: Record, column: str) -> tuple[float, ...]:
    cells = cell if isinstance(cell, list) else [cell]
    if len(cells) != expected:
        raise DataError(
            f"{record.origin}: {len(cells):,} scores in '{brief(column)}', expected {expected:,}: of the positive, "
            f"then of each negative in order. Correct the row, or type:  --score-column {NO_COLUMN}"
        )
    scores = [number(score) for score in cells]
    if None in scores:
        raise DataError(
            f"{record.origin}: '{brief(column)}' has the score {quoted(cells[scores.index(None)])}, expected a number. "
            f"Correct the row, or type:  --score-column {NO_COLUMN}"
        )
    return tuple(score for score in scores if score is not None)


def _no_numbers(records: Sequence[Record], column: str, named: str) -> Scoring:
    """A column that is empty, or that holds words: some say whether a passage is right, most something else."""
    words = [value for record in records if (value := record.fields.get(column)) not in (None, "")]
    if not words:
        return Scoring()
    return Scoring(
        warning=f"{named} holds no numbers but such as {quoted(words[0])}, and was not used: the passage of every row "
        "counts as right. If some are not, write 0 for them and 1 for the others."
    )


def _required(value: float | None, record: Record, column: str, otherwise: str) -> float:
    if value is None:
        raise DataError(
            f"{record.origin}: the {brief(column)} is {quoted(record.fields.get(column))}; expected a number in every "
            f"row. A teacher's scores belong into a column 'scores'. {otherwise}"
        )
    return value


def _refuse_unclear(distinct: set[float], columns: Columns, named: str, otherwise: str, *, given: bool) -> None:
    """Raise where numbers may be something else than grades."""
    if len(distinct) < 2:
        raise DataError(
            f"{named} is {min(distinct):g} in all rows; expected grades of which some are higher, or labels 0 and 1. "
            f"Test sets are often published without. {otherwise}"
        )
    if distinct == {0.0, 1.0, 2.0} and not given and (columns.score or "").strip().lower() == "label":
        raise DataError(
            f"{named} is 0, 1 or 2, which may be classes (entailment, neutral, contradiction) or grades. If a higher "
            f"number means that the texts are more alike, type:  --score-column {columns.score}"
        )
    if columns.negatives:
        raise DataError(
            f"{named} has grades from {min(distinct):g} to {max(distinct):g}, and there are negatives "
            f"('{brief(columns.negatives[0])}'); expected labels 0 and 1 beside negatives, or grades without. A "
            f"teacher's scores belong into a column 'scores'. {otherwise}"
        )
