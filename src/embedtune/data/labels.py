"""What a reader said of the suspects of an evaluation: which other passage answers a question too, or instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from embedtune.data.collection import Collection, Pairs
from embedtune.data.files import iter_records
from embedtune.data.records import Record
from embedtune.data.spelling import passage_key, text_key
from embedtune.errors import DataError, brief
from embedtune.paths import expanded

Replaced = dict[tuple[int, int], int]
"""(query id, passage id) of rows whose passage does not answer the question, to the passage id that does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """That a passage answers a question that its row gives another passage for."""

    label: Literal["also", "instead"]
    """Whether the row's own passage answers the question as well."""
    query: str
    positive: str
    """The passage of the row."""
    candidate: str
    """The passage that the reader found to answer the question."""
    origin: str
    """File and line, for messages."""


def read_labels(source: str) -> list[Label]:
    """The labels of a `suspects.jsonl`, or of another tabular file with its label, query, positive and candidate.

    Lines labelled "no" or not at all say nothing and are left out.

    Raises:
        DataError: the file can't be read, lacks one of the columns, or has a label that isn't known.
    """
    path = expanded(source)
    labels = []
    for record in iter_records(path):
        given = _text(record, "label", path).strip().lower()
        if given in ("", "no"):
            continue
        if given not in ("also", "instead"):
            raise DataError(
                f"'{path}', {record.origin}: the label is '{brief(given)}'; expected 'also' (the candidate "
                "answers the query too), 'instead' (it does and the positive does not), 'no', or nothing."
            )
        labels.append(
            Label(
                label="also" if given == "also" else "instead",
                query=_text(record, "query", path),
                positive=_text(record, "positive", path),
                candidate=_text(record, "candidate", path),
                origin=f"'{path}', {record.origin}",
            )
        )
    return labels


def _text(record: Record, name: str, path: Path) -> str:
    value = record.fields.get(name)
    if not isinstance(value, str):
        raise DataError(
            f"'{path}', {record.origin}: no text in '{name}'; expected the file that a run wrote, suspects.jsonl, "
            "with its 'label' filled in."
        )
    return value


def apply_labels(labels: Sequence[Label], collection: Collection) -> Replaced:
    """Adds the candidates to the passages that answer their query, and takes out the positives that don't.

    Queries are found by their `spelling.text_key`, passages by their `spelling.passage_key`.

    Returns:
        What to change in the rows, with `relabelled`.

    Raises:
        DataError: a query or a passage isn't in the data, the positive isn't one of that query, or labels contradict
            each other.
    """
    queries = {text_key(text): number for number, text in enumerate(collection.queries)}
    passages = {passage_key(text): number for number, text in enumerate(collection.passages)}
    links: list[tuple[int, int]] = []
    replaced: Replaced = {}
    grades: list[float] = []
    for label in labels:
        query = _found(label.query, queries.get(text_key(label.query)), "query", label)
        positive = _found(label.positive, passages.get(passage_key(label.positive)), "positive", label)
        candidate = _found(label.candidate, passages.get(passage_key(label.candidate)), "candidate", label)
        if positive not in collection.qrels[query] or positive == candidate:
            raise DataError(
                f"{label.origin}: the positive '{brief(label.positive)}' is "
                f"{'the candidate as well' if positive == candidate else 'not a passage of its query in the data'}; "
                "expected the suspects of these data. Clear that line's label."
            )
        links.append((query, candidate))
        grades.append(collection.qrels[query][positive])
        if label.label == "instead":
            replaced[query, positive] = candidate
    for label, link in zip(labels, links, strict=True):
        if link in replaced:
            raise DataError(
                f"{label.origin}: the candidate answers the query '{brief(label.query)}', but another line says "
                "'instead' of that passage. Clear one of the two labels."
            )
    for (query, candidate), grade in zip(links, grades, strict=True):
        collection.qrels[query].setdefault(candidate, grade)
    for query, positive in replaced:
        del collection.qrels[query][positive]
    return replaced


def _found(text: str, number: int | None, name: str, label: Label) -> int:
    if number is None:
        raise DataError(
            f"{label.origin}: the {name} '{brief(text)}' is not in the data; expected the suspects of these data. Give "
            "the files that the suspects come from (--corpus for further passages), or clear that line's label."
        )
    return number


def relabelled(pairs: Pairs, replaced: Replaced) -> Pairs:
    """The rows with the passages that do answer their questions; a pair that is there twice then is kept once."""
    links = list(zip(pairs.query_ids.tolist(), pairs.passage_ids.tolist(), strict=True))
    corrected = [(query, replaced.get((query, passage), passage)) for query, passage in links]
    kept = list({link: row for row, link in reversed(list(enumerate(corrected)))}.values())
    passage_ids = np.array([passage for _, passage in corrected], dtype=np.int64)
    scores = pairs.scores
    if scores is not None:  # a teacher has not scored the new passage
        scores = tuple(() if link in replaced else given for link, given in zip(links, scores, strict=True))
    return replace(pairs, passage_ids=passage_ids, scores=scores).select(sorted(kept))
