"""Records whose equal texts are one text in memory, so that a file takes what its distinct texts do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

MAX_ROWS = 10_000_000
"""Rows that are read at once, as pairs are: ten million short ones, all distinct, take about 6 GB."""
RECENT = 65_536
"""Distinct records among which an equal one is looked for. What a gzipped file repeats lies within its last 32 kB."""
_PLAIN = {str, int, float, bool, type(None)}


class Record(NamedTuple):
    """One object of a file: a JSON object, or a line under its header."""

    origin: str
    """Where it stands: `train.jsonl:17`; of equal records, where the first of them does."""
    fields: dict[str, object]


class SharedTexts:
    """Gives for each text the equal one that was seen first."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def share(self, value: Any) -> Any:
        """The value, with the texts that it is or that a list has as those seen first."""
        if type(value) is str:
            return self._texts.setdefault(value, value)
        return [self.share(item) if type(item) is str else item for item in value] if type(value) is list else value

    def fields(self, pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
        """A record's fields, or any JSON object, from names and values."""
        share = self.share
        return {share(name): share(value) for name, value in pairs}


def shared(records: Iterable[Record]) -> Iterator[Record]:
    """The records with shared texts; one with the same plain values as a recent one is that same object."""
    texts, recent = SharedTexts(), dict[tuple[object, ...], Record]()
    for record in records:
        fields = texts.fields(record.fields.items())
        kinds = tuple(map(type, fields.values()))
        if not _PLAIN.issuperset(kinds):
            yield Record(record.origin, fields)
            continue
        # Numbers as text: their hashes can be made to collide, those of texts are salted.
        key = (*fields, *kinds, *(value if type(value) is str else repr(value) for value in fields.values()))
        known = recent.get(key)
        if known is None:
            if len(recent) == RECENT:
                recent.clear()
            known = recent[key] = Record(record.origin, fields)
        yield known


def drained(records: list[Record]) -> Iterator[Record]:
    """The records in order; the list is empty in the end, so what is made of each takes the place of it."""
    records.reverse()
    while records:
        yield records.pop()
