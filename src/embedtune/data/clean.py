"""Rows as found to ids into one `Collection`; what can't be used is dropped and counted.

Two texts are one text if they differ only in what a reader does not see: Unicode form, white space,
zero-width characters. Ids follow that, so "the same passage" never depends on how it was typed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from embedtune.data.collection import Collection, Pairs
from embedtune.data.lines import bare_stem
from embedtune.data.table import Row, Table
from embedtune.errors import DataError, brief

# NUL, soft hyphen, zero-width characters, joiners and marks of direction, byte order mark.
_INVISIBLE = re.compile("[\0\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

_FEW_MARKS = 1_000
"""Combining marks that take no time to sort, wherever they are."""


def text_key(text: str) -> str:
    """What two spellings of one text have in common: NFKC, no invisible characters, white space collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _stream_safe(_INVISIBLE.sub("", text)))
    elif "\0" in text:
        text = text.replace("\0", "")
    return " ".join(text.split())


def _stream_safe(text: str) -> str:
    """The text with a grapheme joiner after each 30 combining marks in a row, where it is long enough to matter.

    Normalisation sorts marks, in Python in the square of their number: a line of 1 MB of them takes four minutes, one
    of 10 MB hours. No language has more than a few on a letter.

    Source: Unicode Standard Annex 15, section 13, "Stream-Safe Text Format".
    """
    if len(text) <= _FEW_MARKS:
        return text
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if np.count_nonzero(_is_mark()[points]) <= _FEW_MARKS:
        return text
    marks = "".join(map(chr, np.flatnonzero(_is_mark())))
    return re.sub(f"[{marks}]{{30}}(?=[{marks}])", "\\g<0>\u034f", text)


@cache
def _is_mark() -> npt.NDArray[np.bool_]:
    """For each code point whether it is a combining mark, or becomes marks alone."""
    is_mark = np.zeros(0x110000, dtype=np.bool_)
    for point in range(0x300, 0x1F000):  # there are none before and behind
        is_mark[point] = unicodedata.combining(unicodedata.normalize("NFKD", chr(point))[0])
    return is_mark


def _spelling(text: str) -> str:
    """The text as kept: stripped; half a surrogate pair, which no tokenizer or file takes, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()


def _key(value: object) -> str | None:
    """The text key of a value; "" if there is nothing to read, `None` if it isn't text."""
    if value is None:
        return ""
    return text_key(value) if isinstance(value, str) else None


@dataclass(kw_only=True)
class CleanRows:
    """The usable rows of one table, and how many were not usable."""

    source: str
    """The source as typed."""
    pairs: Pairs
    """Distinct pairs; `CollectionBuilder.finish` takes out the negatives that turned out to be positives."""
    dropped: Counter[str]
    """Reason to number of rows, negatives or passages dropped, as in `results.json`."""


class _Texts:
    """Distinct texts in the order and spelling first seen."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self._ids: dict[str, int] = {}

    def add(self, key: str, text: str) -> int:
        """The id of the text with this key."""
        known = self._ids.get(key)
        if known is not None:
            return known
        spelling = _spelling(text)
        # One string in memory instead of two where the spelling is its own key, as it mostly is.
        self._ids[spelling if spelling == key else key] = len(self.texts)
        self.texts.append(spelling)
        return len(self.texts) - 1


@dataclass
class _Kept:
    """The rows of one table kept so far."""

    query_ids: list[int] = field(default_factory=list)
    passage_ids: list[int] = field(default_factory=list)
    negative_ids: list[dict[int, None]] = field(default_factory=list)
    row_ids: list[str] = field(default_factory=list)
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    """(query id, passage id) to position in the lists."""

    def pairs(self) -> Pairs:
        return Pairs(
            query_ids=np.array(self.query_ids, dtype=np.int64),
            passage_ids=np.array(self.passage_ids, dtype=np.int64),
            negative_ids=tuple(map(tuple, self.negative_ids)),
            row_ids=tuple(_made_unique(self.row_ids)),
        )


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
        self._queries = _Texts(self.collection.queries)
        self._passages = _Texts(self.collection.passages)
        self._added: list[CleanRows] = []

    def add(self, table: Table) -> CleanRows:
        """The usable rows of a table, as ids into the collection, which grows by their texts.

        Raises:
            DataError: no row is usable.
        """
        kept, dropped = _Kept(), Counter[str]()
        stem = _spelling(bare_stem(table.source))
        for number, row in enumerate(table.rows, 1):
            reason = self._add_row(row, _spelling(row.id) or f"{stem}-{number:06d}", kept, dropped)
            if reason is not None:
                dropped[reason] += 1
        if not kept.row_ids:
            counts = ", ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "there were none"
            raise DataError(
                f"'{table.source}': none of its {len(table.rows)} rows can be used ({counts}). Expected rows "
                f"with a question and a passage, both text.{_columns_read(table)}"
            )
        dropped.update(self.add_passages(table.passages))
        rows = CleanRows(source=table.source, pairs=kept.pairs(), dropped=dropped)
        self._added.append(rows)
        return rows

    def add_passages(self, passages: Iterable[object]) -> Counter[str]:
        """Adds passages to search in that need no question; gives the counts of those dropped."""
        dropped = Counter[str]()
        for passage in passages:
            key = _key(passage)
            if key and isinstance(passage, str):
                self._passages.add(key, passage)
            else:
                dropped["non_string" if key is None else "empty_passages"] += 1
        return dropped

    def finish(self) -> Collection:
        """The collection of all tables added.

        Only now are all positives of every question known, of whichever table, so negatives that are among
        them are taken out of the rows that `add` gave.
        """
        for rows in self._added:
            before = rows.pairs.negative_ids
            after = tuple(
                tuple(negative for negative in negatives if negative not in self.collection.qrels[query_id])
                for query_id, negatives in zip(rows.pairs.query_ids.tolist(), before, strict=True)
            )
            if false_negatives := sum(map(len, before)) - sum(map(len, after)):
                rows.dropped["negatives_that_are_positives"] += false_negatives
                rows.pairs = replace(rows.pairs, negative_ids=after)
        return self.collection

    def _add_row(self, row: Row, row_id: str, kept: _Kept, dropped: Counter[str]) -> str | None:
        """Keeps the row, or gives the reason why it is dropped."""
        anchor, positive = _key(row.anchor), _key(row.positive)
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
        first = kept.positions.setdefault((query_id, passage_id), len(kept.row_ids))
        if first < len(kept.row_ids):
            kept.negative_ids[first].update(negatives)
            return "duplicate_pairs"
        kept.query_ids.append(query_id)
        kept.passage_ids.append(passage_id)
        kept.negative_ids.append(negatives)
        kept.row_ids.append(row_id)
        return None

    def _negatives(self, row: Row, anchor: str, dropped: Counter[str]) -> dict[int, None]:
        """The passage ids of a row's negatives, each once, in order."""
        ids: dict[int, None] = {}
        for negative in row.negatives:
            key = _key(negative)
            if key is None:
                dropped["non_string_negatives"] += 1
            elif not key or not isinstance(negative, str):
                dropped["empty_negatives"] += 1
            elif key == anchor:
                dropped["negatives_that_are_anchors"] += 1
            else:
                ids[self._passages.add(key, negative)] = None
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


def check_trainable(pairs: Pairs, collection: Collection, source: str) -> None:
    """Checks that a contrastive loss has something to tell apart.

    Raises:
        DataError: there are no rows, fewer than two distinct passages, or no passage is wrong for a question.
    """
    if len(pairs) == 0:
        raise DataError(
            f"'{source}': no rows are left to train on. If its questions or passages are those of the test "
            f"file, give other rows to train on, or leave out --test to have a test split cut. If they only resemble "
            f"them, type:  --near-duplicates 0"
        )
    passages = set(pairs.passage_ids.tolist()).union(*pairs.negative_ids)
    if len(passages) < 2:
        text = collection.passages[passages.pop()]
        raise DataError(
            f"'{source}' has 1 distinct passage ('{brief(text)}'); contrastive training needs at least two "
            f"passages, one that answers a question and one that does not. Add rows with other passages."
        )
    if all(passages <= collection.qrels[query_id].keys() for query_id in set(pairs.query_ids.tolist())):
        raise DataError(
            f"'{source}': every one of its {len(passages)} passages answers every question, so there is no "
            f"wrong one to tell apart. Add rows with other questions and passages."
        )
