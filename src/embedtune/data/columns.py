"""Which column is the question, which the passage; records to rows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from embedtune.data.files import Record
from embedtune.data.table import Columns, Row
from embedtune.errors import DataError, brief

# In order of preference, compared without regard to case, `_`, `-` and spaces. In a row with a question, a
# context and an answer (SQuAD, RAG logs) the context is what a search has to find, so answers come late. The
# names sentence1 and sentence2 are left out: such files are mostly scored pairs, not all of them positives.
ANCHOR_NAMES = (
    "anchor", "anchors", "question", "questions", "query", "queries", "q",
    "question_text", "query_text", "user_query", "search_query",
)  # fmt: skip
POSITIVE_NAMES = (
    "positive", "positives", "pos", "context", "contexts", "passage", "passages", "positive_passage",
    "relevant_passage", "document", "documents", "doc", "chunk", "chunk_text", "passage_text", "text",
    "content", "answer", "response",
)  # fmt: skip
PASSAGE_NAMES = (
    "text", "passage", "context", "document", "positive", "content",
    "chunk", "chunk_text", "passage_text", "doc",
)  # fmt: skip
ID_NAMES = ("id", "_id")

MAX_COMBINATIONS = 1_000
"""Rows that a list of questions beside a list of passages makes at most; 30 kB could make a hundred million."""
_COMPARED_NAMES, _COMPARED_CHARACTERS = 1_000, 100
"""Names among which the closest to a misspelled one is looked for, and their length: that takes the square of both."""

_NEGATIVE = re.compile(r"(hard)?neg(ative)?s?(passages?|documents?|docs?)?\d*")


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).lower()


def find_column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first name of `wanted` that is among `names`, as it is spelled there."""
    spelled = {_plain(name): name for name in reversed(names)}
    return next((spelled[_plain(name)] for name in wanted if _plain(name) in spelled), None)


def listed(names: Iterable[str]) -> str:
    """Column names for a message, at most 20 of them."""
    quoted = [f"'{brief(name)}'" for name in names]
    return ", ".join(quoted[:20]) + (f" and {len(quoted) - 20} more" if len(quoted) > 20 else "") or "none"


def given_column(names: Sequence[str], name: str, flag: str, source: str) -> str:
    """The column that the user named.

    Raises:
        DataError: there is no such column.
    """
    if name in names:
        return name
    if found := find_column(names, [name]):
        return found
    short = [known for known in names[:_COMPARED_NAMES] if len(known) <= _COMPARED_CHARACTERS]
    close = difflib.get_close_matches(name[:_COMPARED_CHARACTERS], short, n=1)
    hint = f"{flag} '{close[0]}'" if close else f"{flag} NAME"
    raise DataError(f"'{source}' has no column '{brief(name)}'. Columns found: {listed(names)}. Type:  {hint}")


def resolve_columns(asked: Columns, names: Sequence[str], source: str) -> Columns:
    """The columns to read: those asked for, and the others recognised by their names.

    Raises:
        DataError: a column asked for does not exist, or the question or passage column isn't recognised.
    """
    anchor, positive = asked.anchor, asked.positive
    if anchor is not None:
        anchor = given_column(names, anchor, "--anchor-column", source)
    if positive is not None:
        positive = given_column(names, positive, "--positive-column", source)
    anchor = anchor or find_column([name for name in names if name != positive], ANCHOR_NAMES)
    positive = positive or find_column([name for name in names if name != anchor], POSITIVE_NAMES)
    if anchor is None or positive is None:
        raise _not_recognised(anchor, positive, names, source)
    if asked.negatives:
        negatives = tuple(given_column(names, name, "--negative-columns", source) for name in asked.negatives)
    else:
        negatives = tuple(
            name for name in names if name not in (anchor, positive) and _NEGATIVE.fullmatch(_plain(name))
        )
    return Columns(anchor=anchor, positive=positive, negatives=negatives)


def _not_recognised(anchor: str | None, positive: str | None, names: Sequence[str], source: str) -> DataError:
    missing = [
        (role, known, flag)
        for found, role, known, flag in (
            (anchor, "questions", ANCHOR_NAMES, "--anchor-column NAME"),
            (positive, "passages", POSITIVE_NAMES, "--positive-column NAME"),
        )
        if found is None
    ]
    roles = " and the one with the ".join(role for role, _, _ in missing)
    recognised = "; ".join(f"for the {role}: {', '.join(known)}" for role, known, _ in missing)
    return DataError(
        f"'{source}': the column with the {roles} was not recognised. Columns found: {listed(names)}. "
        f"Recognised by name {recognised}. Type:  {' '.join(flag for _, _, flag in missing)}"
    )


def column_names(records: Iterable[Record]) -> list[str]:
    """The names of all columns that any record has, as first seen."""
    return list(dict.fromkeys(name for record in records for name in record.fields))


def id_columns(names: Iterable[str]) -> list[str]:
    """The columns that hold an id of the row, the one to take first."""
    return [name for wanted in ID_NAMES for name in names if name.strip().lower() == wanted]


def rows_of(records: Iterable[Record], columns: Columns, names: Sequence[str]) -> list[Row]:
    """The rows of the records. A list of questions or of positives makes a row for each of them.

    Args:
        records: What the file holds.
        columns: As resolved by `resolve_columns`.
        names: The names of all columns, among which is the id column, if there is one.

    Raises:
        DataError: several questions and several positives in one row make too many.
    """
    assert columns.anchor is not None
    assert columns.positive is not None
    id_column = next(iter(id_columns(names)), None)
    rows: list[Row] = []
    for origin, fields in records:
        negatives = _negatives(fields, columns.negatives)
        row_id = _row_id(fields.get(id_column)) if id_column is not None else ""
        anchors, positives = _several(fields.get(columns.anchor)), _several(fields.get(columns.positive))
        if min(len(anchors), len(positives)) > 1 and len(anchors) * len(positives) > MAX_COMBINATIONS:
            raise DataError(
                f"{origin}: {len(anchors):,} questions in '{brief(columns.anchor)}' and {len(positives):,} passages "
                f"in '{brief(columns.positive)}' in one row make {len(anchors) * len(positives):,} pairs; expected "
                f"at most {MAX_COMBINATIONS:,}. Give each question a row with its own passages."
            )
        rows.extend(
            Row(anchor, positive, negatives, id=row_id, origin=origin) for anchor in anchors for positive in positives
        )
    return rows


def _several(cell: object) -> list[object]:
    """The texts of a cell; an empty list stays one empty cell, so that its row is counted as dropped."""
    return (cell or [None]) if isinstance(cell, list) else [cell]


def _negatives(fields: dict[str, object], names: tuple[str, ...]) -> tuple[object, ...]:
    # A missing cell is no negative; rows may have different numbers of them.
    return tuple(text for name in names for text in _several(fields.get(name)) if text is not None)


def _row_id(value: object) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
