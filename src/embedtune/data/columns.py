"""Which column is the question, which the passage; records to rows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from embedtune.data.records import RECENT, Record
from embedtune.data.scores import NO_COLUMN, teacher_scores
from embedtune.data.table import Columns, Row
from embedtune.errors import DataError, brief

# In order of preference, compared without regard to case, `_`, `-` and spaces. In a row with a question, a
# context and an answer (SQuAD, RAG logs) the context is what a search has to find, so answers come late. Two sentences
# are a pair of their own kind, and only with a score: such pairs are not all of them positives.
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
FIRST_NAMES = ("sentence1", "text1", "sentence_a", "question1")
SECOND_NAMES = ("sentence2", "text2", "sentence_b", "question2")
SCORE_NAMES = ("score", "similarity", "similarity_score", "label")
"""Beside a question and a passage."""
GRADE_NAMES = ("score", "similarity", "similarity_score", "grade", "rating", "label")
"""Beside two sentences."""
TEACHER_NAMES = ("scores", "teacher_scores")
ID_NAMES = ("id", "_id")

MAX_COMBINATIONS = 1_000
"""Rows that a list of questions beside a list of passages makes at most; 30 kB could make a hundred million."""
_COMPARED_NAMES, _COMPARED_CHARACTERS = 1_000, 100
"""Names among which the closest to a misspelled one is looked for, and their length: that takes the square of both."""

_SCORE_OF_NEGATIVE = re.compile(r"score(hard)?neg(ative)?s?(passages?|documents?|docs?)?\d*")
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
    if anchor is None and positive is None and asked.score != NO_COLUMN:
        anchor, positive = _sentences(asked, names)
    if anchor is None or positive is None:
        raise _not_recognised(anchor, positive, names, source)
    if asked.negatives:
        negatives = tuple(given_column(names, name, "--negative-columns", source) for name in asked.negatives)
    else:
        negatives = tuple(
            name for name in names if name not in (anchor, positive) and _NEGATIVE.fullmatch(_plain(name))
        )
    columns = Columns(anchor=anchor, positive=positive, negatives=negatives)
    return columns if asked.score == NO_COLUMN else _with_scores(columns, asked, names, source)


def _sentences(asked: Columns, names: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of two sentences, if there is one of their score."""
    first, second = find_column(names, FIRST_NAMES), find_column(names, SECOND_NAMES)
    if first is None or second is None or not (asked.score or find_column(names, GRADE_NAMES)):
        return None, None
    return first, second


def _with_scores(columns: Columns, asked: Columns, names: Sequence[str], source: str) -> Columns:
    """The columns with those of labels, grades and a teacher's scores.

    Raises:
        DataError: the column asked for does not exist, or a teacher scored texts that are not there.
    """
    assert columns.anchor is not None
    assert columns.positive is not None
    sentences = find_column([columns.anchor], FIRST_NAMES) is not None
    sentences &= find_column([columns.positive], SECOND_NAMES) is not None
    others = [name for name in names if name not in (columns.anchor, columns.positive, *columns.negatives)]
    if asked.score is not None:
        score: str | None = given_column(names, asked.score, "--score-column", source)
    else:
        score = find_column(others, GRADE_NAMES if sentences else SCORE_NAMES)
    if teacher := find_column(others, TEACHER_NAMES):
        return replace(columns, score=score, sentences=sentences, teacher=(teacher,))
    teachers = _teacher_columns(columns, others, source)
    return replace(columns, score=score, sentences=sentences, teacher=teachers, scores_apart=bool(teachers))


def _teacher_columns(columns: Columns, others: Sequence[str], source: str) -> tuple[str, ...]:
    """The column of the positive's score and those of the negatives'; none if a teacher has not scored the positive."""
    positive = find_column(others, ("score_positive", "positive_score"))
    if positive is None:
        return ()
    pairs = {name: find_column(others, (f"score_{name}", f"{name}_score")) for name in columns.negatives}
    if missing := [name for name, found in pairs.items() if found is None]:
        raise DataError(
            f"'{source}': the column '{brief(positive)}' has a teacher's scores, but none has those of "
            f"'{brief(missing[0])}'; expected 'score_{brief(missing[0])}'. To read no scores, type:  "
            f"--score-column {NO_COLUMN}"
        )
    of_negatives = tuple(found for found in pairs.values() if found is not None)
    extra = [name for name in others if _SCORE_OF_NEGATIVE.fullmatch(_plain(name)) and name not in of_negatives]
    if extra:
        raise DataError(
            f"'{source}': the column '{brief(extra[0])}' has a teacher's scores of negatives that are not there; "
            f"expected a column '{brief(extra[0].partition('_')[2] or 'negative')}'. To read no scores, type:  "
            f"--score-column {NO_COLUMN}"
        )
    return (positive, *of_negatives)


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


def rows_of(
    records: Iterable[Record], columns: Columns, names: Sequence[str], grades: Sequence[float] | None = None
) -> list[Row]:
    """The rows of the records. A list of questions or of positives makes a row for each of them.

    A record that comes again, as `records.shared` has it, gives the same rows again.

    Args:
        records: What the file holds.
        columns: As resolved by `resolve_columns`.
        names: The names of all columns, among which is the id column, if there is one.
        grades: Of each record, from `scores.scoring`; 1 if not given.

    Raises:
        DataError: several questions and several positives in one row make too many; or a teacher's scores are not as
            many as the texts.
    """
    id_column = next(iter(id_columns(names)), None)
    rows: list[Row] = []
    recent: dict[int, tuple[Record, list[Row]]] = {}
    for number, record in enumerate(records):
        if id(record) not in recent:
            if len(recent) == RECENT:
                recent.clear()
            grade = 1.0 if grades is None else grades[number]
            # The record is kept beside its rows: another one could get the id of one that is gone.
            recent[id(record)] = record, _rows(record, columns, id_column, grade)
        rows += recent[id(record)][1]
    return rows


def _rows(record: Record, columns: Columns, id_column: str | None, grade: float) -> list[Row]:
    assert columns.anchor is not None
    assert columns.positive is not None
    origin, fields = record
    cells = [tuple(_several(fields.get(name))) for name in columns.negatives]
    # A missing cell is no negative; rows may have different numbers of them.
    negatives = tuple(text for texts in cells for text in texts if text is not None)
    scores = teacher_scores(record, columns, cells)
    row_id = _row_id(fields.get(id_column)) if id_column is not None else ""
    anchors, positives = _several(fields.get(columns.anchor)), _several(fields.get(columns.positive))
    if min(len(anchors), len(positives)) > 1 and len(anchors) * len(positives) > MAX_COMBINATIONS:
        raise DataError(
            f"{origin}: {len(anchors):,} questions in '{brief(columns.anchor)}' and {len(positives):,} passages "
            f"in '{brief(columns.positive)}' in one row make {len(anchors) * len(positives):,} pairs; expected "
            f"at most {MAX_COMBINATIONS:,}. Give each question a row with its own passages."
        )
    if scores and len(anchors) * len(positives) > 1:
        raise DataError(
            f"{origin}: a teacher's scores, and {len(anchors):,} questions with {len(positives):,} passages in one "
            "row; expected one of each. Give each pair a row with its own scores."
        )
    return [
        Row(anchor, positive, negatives, grade=grade, scores=scores, id=row_id, origin=origin)
        for anchor in anchors
        for positive in positives
    ]


def _several(cell: object) -> list[object]:
    """The texts of a cell; an empty list stays one empty cell, so that its row is counted as dropped."""
    return (cell or [None]) if isinstance(cell, list) else [cell]


def _row_id(value: object) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
