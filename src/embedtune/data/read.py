"""What the user typed to rows: a file, a BEIR folder, a LlamaIndex file or a data set of the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from embedtune.data import corpora, hub
from embedtune.data.columns import (
    PASSAGE_NAMES,
    column_names,
    find_column,
    given_column,
    id_columns,
    listed,
    resolve_columns,
    rows_of,
)
from embedtune.data.files import (
    KNOWN_SUFFIXES,
    SUFFIXES,
    iter_records,
    read_records,
    require_rows,
)
from embedtune.data.json_files import json_records, load_json
from embedtune.data.lines import bare_suffix, no_such_file, text_lines
from embedtune.data.parquet_files import parquet_columns
from embedtune.data.records import Record, SharedTexts, drained, shared
from embedtune.data.scores import scoring
from embedtune.data.table import Columns, Row, Split, Table, known_splits
from embedtune.errors import DataError
from embedtune.paths import expanded

__all__ = ["Columns", "Row", "Split", "Table", "available_splits", "read", "read_passages", "stream_passages"]

BY_NAME = Columns()
"""Both columns recognised by their names."""

RECOGNISED_BY = 1_000
"""Rows of a streamed file among whose columns that of the passages is looked for."""

_Kind = Literal["file", "folder", "hub"]


def read(source: str, *, columns: Columns = BY_NAME, split: Split = "train") -> Table:
    """The rows of a source.

    Args:
        source: A `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file (each also `.gz`), a BEIR folder, a
            LlamaIndex JSON file, or a data set of the hub as `OWNER/NAME` or `OWNER/NAME:CONFIG`.
        columns: Columns to take; those left out are recognised by their names.
        split: Which split of a BEIR folder or hub data set; files have none and ignore it.

    Raises:
        DataError: the source can't be found or read, or its columns aren't recognised.
    """
    kind = _kind(source)
    path = expanded(source)
    if kind == "folder":
        return corpora.read_beir(path, source, split)
    if kind == "hub":
        return _hub_table(source, columns, split)
    if bare_suffix(path.name) == ".json":
        content = load_json(path)
        if corpora.is_llamaindex(content):
            return corpora.read_llamaindex(content, path, source)
        return _table(require_rows(json_records(content, path), path), columns, source)
    return _table(read_records(path), columns, source)


def available_splits(source: str) -> frozenset[str]:
    """Which of `train`, `dev` and `test` a BEIR folder or hub data set has of its own.

    Empty for files, and for sources with a single split, which are read like a file.

    Raises:
        DataError: the source can't be found.
    """
    kind = _kind(source)
    if kind == "folder":
        return known_splits(corpora.beir_splits(expanded(source)))
    if kind == "hub":
        return known_splits(hub.load_splits(source))
    return frozenset()


def read_passages(source: str, *, column: str | None = None) -> list[object]:
    """Passages to search in, for `--corpus`.

    Args:
        source: Any source that `read` takes, or a `.txt` file with a passage a line. Of a BEIR folder or a
            LlamaIndex file the corpus is taken, of a hub data set the train split.
        column: The column of the passages; by default recognised by its name. A file with `_id` and `text` is a BEIR
            corpus: title, if there is one, and text together are the passage.

    Raises:
        DataError: the source can't be found or read, has no passages, or its column isn't recognised.
    """
    return list(map(SharedTexts().share, _passages(source, column, recognised_by=None)))


def stream_passages(source: str, *, column: str | None = None) -> Iterator[object]:
    """As `read_passages`, but read bit by bit as the passages are asked for.

    A `.json` file, a LlamaIndex file and a BEIR folder are read at once all the same.

    Args:
        source: As in `read_passages`.
        column: As in `read_passages`, except that of JSON Lines only the first rows tell which columns there are. That
            makes no difference where every row has a passage: its column is in the first row then.

    Raises:
        DataError: as in `read_passages`; of a line, when it is its turn.
    """
    return _passages(source, column, recognised_by=RECOGNISED_BY)


def _passages(source: str, column: str | None, *, recognised_by: int | None) -> Iterator[object]:
    path = expanded(source)
    suffix = bare_suffix(path.name)
    if suffix == ".txt" and os.path.exists(path) and not os.path.isdir(path):
        return _text_passages(path)
    kind = _kind(source)
    if kind == "folder":
        return iter(corpora.read_beir_corpus(path))
    if kind == "hub":
        dataset = hub.load_split(source, "train")
        names: list[str] = dataset.column_names
        columns = _passage_columns(names, column, source)
        needed = [name for name in columns if name in names]
        return _cells(hub.dataset_records(dataset, needed, source), columns)
    if suffix == ".parquet":
        columns = _passage_columns(parquet_columns(path), column, source)
        return _cells(iter_records(path, columns), columns)
    records: Iterator[Record]
    if suffix == ".json":
        content = load_json(path)
        if corpora.is_llamaindex(content):
            return iter(corpora.llamaindex_corpus(content, path))
        records = iter(require_rows(json_records(content, path), path))
    else:
        records = iter_records(path) if recognised_by is not None else shared(iter_records(path))
    first = list(islice(records, recognised_by))
    columns = _passage_columns(column_names(first), column, source)
    return _cells(chain(first, records), columns)


def _kind(source: str) -> _Kind:
    """What the source is; a path that exists comes before a hub id.

    Raises:
        DataError: it is none of them.
    """
    path = expanded(source)
    if os.path.isdir(path):
        if not corpora.is_beir(path):
            raise corpora.not_beir(path)
        return "folder"
    if os.path.exists(path):
        if bare_suffix(path.name) not in SUFFIXES:
            raise DataError(f"'{source}' has the suffix '{path.suffix}'; expected {KNOWN_SUFFIXES}.")
        return "file"
    if _reads_like_a_path(source):
        raise no_such_file(path)
    return "hub"


def _reads_like_a_path(source: str) -> bool:
    # `data/train` with a folder `data` here is a misspelled path rather than a hub id.
    return (
        bare_suffix(source) in (*SUFFIXES, ".txt")
        or not hub.is_hub_id(source)
        or ("/" in source and os.path.isdir(source.split("/")[0]))
    )


def _table(records: list[Record], asked: Columns, source: str) -> Table:
    names = column_names(records)
    return _table_of(records, resolve_columns(asked, names, source), names, asked, source)


def _table_of(records: list[Record], columns: Columns, names: list[str], asked: Columns, source: str) -> Table:
    found = scoring(records, columns, source, given=asked.score is not None)
    return Table(
        rows=rows_of(drained(records), columns, names, found.values),
        source=source,
        columns=columns,
        graded=found.kind == "grades",
        note=found.note,
        warning=found.warning,
    )


def _hub_table(source: str, asked: Columns, split: Split) -> Table:
    dataset = hub.load_split(source, split)
    names: list[str] = dataset.column_names
    columns = resolve_columns(asked, names, source)
    # Only what is needed is decoded: hub data sets may carry images, or embeddings of every row.
    scored = (columns.score, *columns.teacher)
    needed = dict.fromkeys((columns.anchor, columns.positive, *columns.negatives, *scored, *id_columns(names)))
    records = list(shared(hub.dataset_records(dataset, [name for name in needed if name is not None], source)))
    return _table_of(records, columns, names, asked, source)


def _text_passages(path: Path) -> Iterator[object]:
    empty = True
    for _, line in text_lines(path):
        if text := line.strip():
            empty = False
            yield text
    if empty:
        raise DataError(f"'{path}' has no passages; expected one a line.")


def _passage_columns(names: Sequence[str], column: str | None, source: str) -> list[str]:
    """The columns that make a passage: title and text of a BEIR corpus, whose rows need no title, or one column."""
    if column is None and {"_id", "text"} <= set(names):
        return ["title", "text"]
    if column is not None:
        column = given_column(names, column, "--column", source)
    else:
        column = find_column(names, PASSAGE_NAMES)
    if column is None:
        raise DataError(
            f"'{source}': the column with the passages was not recognised. Columns found: {listed(names)}. "
            f"Expected one of: {', '.join(PASSAGE_NAMES)}. "
            "Rename that column to 'text', or, to encode, type:  --column NAME"
        )
    return [column]


def _cells(records: Iterable[Record], columns: Sequence[str]) -> Iterator[object]:
    """The passages of the records, in those columns; a list without a title is several."""
    for record in records:
        cell = record.fields.get(columns[-1])
        if "title" in record.fields and len(columns) > 1:
            yield corpora.titled_text(record.fields)
        elif isinstance(cell, list):
            yield from cell
        else:
            yield cell
