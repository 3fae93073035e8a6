"""Rows as found to ids into one `Collection`; what can't be used is dropped and counted.

Ids of questions follow `spelling.text_key`, those of passages `spelling.passage_key`, so "the same passage" never
depends on how it was typed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from embedtune.data.collection import Collection, Pairs
from embedtune.data.distinct import DistinctPassages, DistinctTexts
from embedtune.data.lines import bare_stem
from embedtune.data.spelling import key_of, spelling
from embedtune.data.table import Row, Table
from embedtune.data.trainable import without_negatives
from embedtune.errors import DataError


@dataclass(kw_only=True)
class CleanRows:
    """The usable rows of one table, and how many were not usable."""

    source: str
    """The source as typed."""
    pairs: Pairs
    """Distinct pairs; `CollectionBuilder.finish` takes out the negatives that turned out to be positives."""
    dropped: Counter[str]
    """Reason to number of rows, negatives or passages dropped, as in `results.json`."""
    rejected: int = 0
    """Rows labelled 0 whose passage became a negative of their question's other rows."""


@dataclass
class _Kept:
    """The rows of one table kept so far."""

    query_ids: list[int] = field(default_factory=list)
    passage_ids: list[int] = field(default_factory=list)
    negatives: list[dict[int, float | None]] = field(default_factory=list)
    """Passage id to the teacher's score, of each row."""
    scores: list[float | None] = field(default_factory=list)
    """The teacher's, of each row's positive."""
    grades: list[float] = field(default_factory=list)
    row_ids: list[str] = field(default_factory=list)
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    """(query id, passage id) to position in the lists."""

    def add(self, query_id: int, passage_id: int, row: Row, row_id: str) -> None:
        """One more row, without negatives."""
        self.positions[query_id, passage_id] = len(self.row_ids)
        self.query_ids.append(query_id)
        self.passage_ids.append(passage_id)
        self.negatives.append({})
        self.scores.append(row.scores[0] if row.scores else None)
        self.grades.append(row.grade)
        self.row_ids.append(row_id)

    def pairs(self, *, graded: bool) -> Pairs:
        scores = tuple(map(_complete, self.scores, self.negatives))
        return Pairs(
            query_ids=np.array(self.query_ids, dtype=np.int64),
            passage_ids=np.array(self.passage_ids, dtype=np.int64),
            negative_ids=tuple(map(tuple, self.negatives)),
            row_ids=tuple(_made_unique(self.row_ids)),
            grades=np.array(self.grades) if graded else None,
            scores=scores if any(scores) else None,
        )


def _complete(positive: float | None, negatives: dict[int, float | None]) -> tuple[float, ...]:
    """A row's scores if the teacher has scored all of its texts; else none."""
    scores = [positive, *negatives.values()]
    return () if None in scores else tuple(score for score in scores if score is not None)


class CollectionBuilder:
    """Joins tables into one collection.

    Add the tables in the order of interest, then call `finish` once::

        builder = CollectionBuilder()
        train = builder.add(read("train.jsonl"))
        test = builder.add(read("test.jsonl"))
        collection = builder.finish()
    """

    def __init__(self) -> None:
        self.collection = Collection()
        self._queries = DistinctTexts(self.collection.queries)
        self._passages: DistinctTexts | DistinctPassages = DistinctPassages(self.collection.passages)
        self._added: list[CleanRows] = []

    def add(self, table: Table) -> CleanRows:
        """The usable rows of a table, as ids into the collection, which grows by their texts.

        Raises:
            DataError: no row is usable, or the rows are of another kind than those of the tables before.
        """
        self._check_kind(table)
        kept, dropped = _Kept(), Counter[str]()
        stem = spelling(bare_stem(table.source))
        for number, row in enumerate(table.rows, 1):
            if row.grade == 0 and not table.graded:
                continue
            row_id = spelling(row.id) or f"{stem}-{number:06d}"
            add = self._add_graded if table.graded else self._add_row
            reason = add(row, row_id, kept, dropped)
            if reason is not None:
                dropped[reason] += 1
        if not kept.row_ids:
            counts = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "there were none"
            raise DataError(
                f"'{table.source}': none of its {len(table.rows)} rows can be used ({counts}). Expected rows "
                f"with a question and a passage, both text.{_columns_read(table)}"
            )
        rejected = [] if table.graded else [row for row in table.rows if row.grade == 0]
        count = self._reject(rejected, kept, dropped)
        dropped.update(self.add_passages(table.passages))
        pairs = kept.pairs(graded=table.graded)
        rows = CleanRows(source=table.source, pairs=pairs, dropped=dropped, rejected=count)
        self._added.append(rows)
        return rows

    def add_passages(self, passages: Iterable[object]) -> Counter[str]:
        """Adds passages to search in that need no question; gives the counts of those dropped."""
        dropped = Counter[str]()
        for passage in passages:
            key = key_of(passage)
            if key and isinstance(passage, str):
                self._passages.add(key, passage, of_corpus=True)
            else:
                dropped["non_string" if key is None else "empty_passages"] += 1
        return dropped

    def finish(self) -> Collection:
        """The collection of all tables added.

        Only now are all positives of every question known, of whichever table, so negatives that are among
        them are taken out of the rows that `add` gave.
        """
        for rows in self._added:
            after = without_negatives(rows.pairs, self.collection.qrels)
            if false_negatives := sum(map(len, rows.pairs.negative_ids)) - sum(map(len, after.negative_ids)):
                rows.dropped["negatives_that_are_positives"] += false_negatives
                rows.pairs = after
        return self.collection

    @property
    def respelled(self) -> dict[int, str]:
        """Passage id to another punctuation that the passage came in, of those that came in several."""
        return self._passages.respelled if isinstance(self._passages, DistinctPassages) else {}

    def _check_kind(self, table: Table) -> None:
        """Whether the table can be joined to those before; the first one says what the collection is of."""
        collection, sentences = self.collection, table.graded and table.columns.sentences
        if self._added and (collection.graded, collection.sentences) != (table.graded, sentences):
            kinds = {(False, False): "pairs without grades", (True, False): "graded questions and passages"}
            first, second = (
                kinds.get(kind, "graded sentences")
                for kind in ((collection.graded, collection.sentences), (table.graded, sentences))
            )
            raise DataError(
                f"'{self._added[0].source}' has {first}, '{table.source}' has {second}; expected one kind in all files "
                "of a run. Grades come from a column such as 'score' that has other numbers than 0 and 1, or any "
                "between 'sentence1' and 'sentence2'. Name the columns alike, or type:  --score-column none"
            )
        collection.graded, collection.sentences = table.graded, sentences
        if sentences and not self._added:
            collection.passages, self._passages = collection.queries, self._queries
        elif table.graded and not self._added:
            self._passages = DistinctTexts(collection.passages)  # nothing is searched: a grade is that of one spelling

    def _add_graded(self, row: Row, row_id: str, kept: _Kept, dropped: Counter[str]) -> str | None:
        """Keeps the graded pair, or gives the reason why it is dropped.

        A pair that is there twice is kept twice: it may have two grades, and published test sets are measured so.
        """
        first, second = key_of(row.anchor), key_of(row.positive)
        if first is None or second is None:
            return "non_string"
        if not (first and second and isinstance(row.anchor, str) and isinstance(row.positive, str)):
            return "empty_text"
        kept.add(self._queries.add(first, row.anchor), self._passages.add(second, row.positive), row, row_id)
        return None

    def _add_row(self, row: Row, row_id: str, kept: _Kept, dropped: Counter[str]) -> str | None:
        """Keeps the row, or gives the reason why it is dropped."""
        anchor, positive = key_of(row.anchor), key_of(row.positive)
        if anchor is None or positive is None:
            return "non_string"
        if not anchor or not isinstance(row.anchor, str):
            return "empty_anchor"
        if not positive or not isinstance(row.positive, str):
            return "empty_positive"
        if anchor == positive:
            return "anchor_equals_positive"
        query_id = self._queries.add(anchor, row.anchor)
        passage_id = self._passages.add(positive, row.positive)
        grades = self.collection.qrels.setdefault(query_id, {})
        grades[passage_id] = max(row.grade, grades.get(passage_id, 0.0))
        negatives = self._negatives(row, anchor, dropped)
        first = kept.positions.get((query_id, passage_id))
        if first is None:
            kept.add(query_id, passage_id, row, row_id)
            kept.negatives[-1] = negatives
            return None
        for negative, score in negatives.items():
            kept.negatives[first].setdefault(negative, score)
        return "duplicate_pairs"

    def _reject(self, rows: Iterable[Row], kept: _Kept, dropped: Counter[str]) -> int:
        """Makes the passages of rows labelled 0 negatives of their questions; gives how many rows were used."""
        rows_of_query: dict[int, list[int]] = {}
        for position, query_id in enumerate(kept.query_ids):
            rows_of_query.setdefault(query_id, []).append(position)
        used = 0
        for row in rows:
            anchor = key_of(row.anchor)
            known = self._queries.find(anchor) if anchor else None
            positions = [] if known is None else rows_of_query.get(known, [])
            if not anchor or not positions:
                dropped["labelled_0_only" if anchor else "non_string" if anchor is None else "empty_anchor"] += 1
                continue
            negatives = self._negatives(replace(row, negatives=(row.positive,), scores=()), anchor, dropped)
            used += bool(negatives)
            for position in positions:
                for negative in negatives:
                    kept.negatives[position].setdefault(negative, None)
        return used

    def _negatives(self, row: Row, anchor: str, dropped: Counter[str]) -> dict[int, float | None]:
        """The passage ids of a row's negatives, each once, in order, with the teacher's scores."""
        ids: dict[int, float | None] = {}
        for number, negative in enumerate(row.negatives, 1):
            key = key_of(negative)
            if key is None:
                dropped["non_string_negatives"] += 1
            elif not key or not isinstance(negative, str):
                dropped["empty_negatives"] += 1
            elif key == anchor:
                dropped["negatives_that_are_anchors"] += 1
            else:
                ids.setdefault(self._passages.add(key, negative), row.scores[number] if row.scores else None)
        return ids


def _columns_read(table: Table) -> str:
    if table.columns.anchor is None:
        return ""
    return (
        f" Read from the columns '{table.columns.anchor}' and '{table.columns.positive}'; "
        f"for others, type:  --anchor-column NAME --positive-column NAME"
    )


def _made_unique(row_ids: list[str]) -> list[str]:
    """The ids, with `-2`, `-3` ... behind those that were there before."""
    taken = set(row_ids)
    times: Counter[str] = Counter()
    unique = []
    for row_id in row_ids:
        times[row_id] += 1
        candidate = row_id
        if times[row_id] > 1:
            while (candidate := f"{row_id}-{times[row_id]}") in taken:
                times[row_id] += 1
        taken.add(candidate)
        unique.append(candidate)
    return unique
