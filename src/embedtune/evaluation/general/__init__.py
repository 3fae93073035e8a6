"""What a model should not forget: general sets that this project wrote, and the user's own.

`similarity.jsonl` has pairs of English sentences with a grade from 0 (about different things) to 5 (the same), by the
scale of STS (Agirre et al. 2012); contradictions of one another get about 2. `questions.jsonl` has questions of general
knowledge with the passage that answers each, `distractors.jsonl` further passages about the same things.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.columns import (
    ANCHOR_NAMES,
    FIRST_NAMES,
    GRADE_NAMES,
    POSITIVE_NAMES,
    SECOND_NAMES,
    column_names,
    find_column,
    listed,
)
from embedtune.data.corpora import is_llamaindex
from embedtune.data.files import SUFFIXES, read_records
from embedtune.data.json_files import json_records, load_json
from embedtune.data.lines import bare_stem, bare_suffix
from embedtune.data.read import read, read_passages
from embedtune.data.records import Record
from embedtune.data.spelling import text_key
from embedtune.errors import DataError, brief, quoted
from embedtune.evaluation.metrics import FloatArray
from embedtune.evaluation.run import RetrievalTask, retrieval_task
from embedtune.paths import expanded

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class SimilaritySet:
    """Pairs of sentences and how alike they are to a person, N of each."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    grades_N: FloatArray
    """On any scale; only their order counts."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Questions, and the passages among which their answers are."""

    name: str
    collection: Collection
    task: RetrievalTask


GeneralSet = SimilaritySet | RetrievalSet


def general_sets(files: Sequence[str] = ()) -> list[GeneralSet]:
    """The two built-in sets and those in the files, each under a name of its own.

    Args:
        files: Graded pairs of sentences in any tabular form, or questions and passages in any form that `read` takes.

    Raises:
        DataError: A file can't be read, or is neither.
    """
    similarity = read_set(str(_FOLDER / "similarity.jsonl"), name="everyday sentences")
    questions = _retrieval_set(
        str(_FOLDER / "questions.jsonl"), "general knowledge", str(_FOLDER / "distractors.jsonl")
    )
    stems = [bare_stem(file) for file in files]
    names = [stem if stems.count(stem) == 1 else file for stem, file in zip(stems, files, strict=True)]
    return [similarity, questions, *(read_set(file, name=name) for file, name in zip(files, names, strict=True))]


def read_set(source: str, *, name: str) -> GeneralSet:
    """One set: similarity if the file has two columns of sentences and one of grades, else retrieval.

    Raises:
        DataError: It can't be read, or is neither, with the columns that were found.
    """
    path = expanded(source)
    records = _records(path)
    names = column_names(records)
    first, second = find_column(names, FIRST_NAMES), find_column(names, SECOND_NAMES)
    score = find_column(names, GRADE_NAMES)
    if first and second and score:
        return _similarity_set(records, (first, second, score), source, name)
    if names and not (find_column(names, ANCHOR_NAMES) and find_column(names, POSITIVE_NAMES)):
        raise DataError(
            f"--forgetting {source}: columns found: {listed(names)}. Expected graded pairs of sentences, named "
            "sentence1, sentence2 and score, or questions and passages, named question and passage. Rename the columns."
        )
    return _retrieval_set(source, name)


def _records(path: Path) -> list[Record]:
    """The rows of a tabular file; none of what else `read` takes, or refuses."""
    if not os.path.isfile(path) or bare_suffix(path.name) not in SUFFIXES:
        return []
    if bare_suffix(path.name) == ".json":
        content = load_json(path)
        return [] if is_llamaindex(content) else json_records(content, path)
    return read_records(path)


def _similarity_set(records: list[Record], columns: tuple[str, str, str], source: str, name: str) -> SimilaritySet:
    first, second, score = columns
    grades_N = np.array([_grade(record, score, source) for record in records])
    if len(np.unique(grades_N)) < 2:
        raise DataError(
            f"--forgetting {source}: all of its {len(records):,} pairs have the {score} {grades_N[0]:g}; expected "
            "different ones, as the model's order is compared with theirs. Test sets are often published without."
        )
    return SimilaritySet(
        name=name,
        first=tuple(_sentence(record, first, source) for record in records),
        second=tuple(_sentence(record, second, source) for record in records),
        grades_N=grades_N,
    )


def _grade(record: Record, column: str, source: str) -> float:
    value = record.fields.get(column)
    try:
        grade = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # refused below
    except (TypeError, ValueError, OverflowError):
        grade = math.nan
    if not math.isfinite(grade):
        raise DataError(
            f"--forgetting {source}: {record.origin} has the {brief(column)} {quoted(value)}; expected a number, "
            "the higher the more alike the two sentences are."
        )
    return grade


def _sentence(record: Record, column: str, source: str) -> str:
    value = record.fields.get(column)
    if not isinstance(value, str) or not text_key(value):
        raise DataError(
            f"--forgetting {source}: {record.origin} has the {brief(column)} {quoted(value)}; expected a sentence."
        )
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair, which no tokenizer takes


def _retrieval_set(source: str, name: str, corpus: str | None = None) -> RetrievalSet:
    builder = CollectionBuilder()
    pairs = builder.add(read(source, split="test")).pairs
    if pairs.grades is not None:
        raise DataError(
            f"--forgetting {source}: its questions and passages are graded; expected labels of 0 and 1, or none. Name "
            "the columns sentence1, sentence2 and score to have the grades compared with the model's similarity."
        )
    if corpus is not None:
        builder.add_passages(read_passages(corpus))
    collection = builder.finish()
    task = retrieval_task(collection, pairs.query_ids, np.arange(len(collection.passages)))
    return RetrievalSet(name=name, collection=collection, task=task)
