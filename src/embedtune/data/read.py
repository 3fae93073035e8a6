"""What the user typed to rows: a file, a BEIR folder, a LlamaIndex file or a data set of the hub."""

from __future__ import annotations

import os
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
    Record,
    bare_suffix,
    json_records,
    load_json,
    no_such_file,
    read_records,
    require_rows,
    text_lines,
)
from embedtune.data.table import Columns, Row, Split, Table, known_splits
from embedtune.errors import DataError

__all__ = ["Columns", "Row", "Split", "Table", "available_splits", "read", "read_passages"]

BY_NAME = Columns()
"""Both columns recognised by their names."""

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
    path = Path(os.path.expanduser(source))
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
        return known_splits(corpora.beir_splits(Path(os.path.expanduser(source))))
    if kind == "hub":
        return known_splits(hub.load_splits(source))
    return frozenset()


def read_passages(source: str, *, column: str | None = None) -> list[object]:
    """Passages to search in, for `--corpus`.

    Args:
        source: Any source that `read` takes, or a `.txt` file with a passage a line. Of a BEIR folder or a
            LlamaIndex file the corpus is taken, of a hub data set the train split.
        column: The column of the passages; by default recognised by its name. A file with `_id`, `title` and
            `text` is a BEIR corpus: title and text together are the passage.

    Raises:
        DataError: the source can't be found or read, has no passages, or its column isn't recognised.
    """
    path = Path(os.path.expanduser(source))
    if bare_suffix(path.name) == ".txt" and path.is_file():
        return _text_passages(path)
    kind = _kind(source)
    if kind == "folder":
        return corpora.read_beir_corpus(path)
    if kind == "hub":
        dataset = hub.load_split(source, "train")
        return _column_passages(list(hub.dataset_records(dataset, dataset.column_names, source)), column, source)
    if bare_suffix(path.name) == ".json":
        content = load_json(path)
        if corpora.is_llamaindex(content):
            return corpora.llamaindex_corpus(content, path)
        return _column_passages(require_rows(json_records(content, path), path), column, source)
    return _column_passages(read_records(path), column, source)


def _kind(source: str) -> _Kind:
    """What the source is; a path that exists comes before a hub id.

    Raises:
        DataError: it is none of them.
    """
    path = Path(os.path.expanduser(source))
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
    columns = resolve_columns(asked, names, source)
    return Table(rows=rows_of(records, columns, names), source=source, columns=columns)


def _hub_table(source: str, asked: Columns, split: Split) -> Table:
    dataset = hub.load_split(source, split)
    names: list[str] = dataset.column_names
    columns = resolve_columns(asked, names, source)
    # Only what is needed is decoded: hub data sets may carry images, or embeddings of every row.
    needed = dict.fromkeys((columns.anchor, columns.positive, *columns.negatives, *id_columns(names)))
    records = hub.dataset_records(dataset, [name for name in needed if name is not None], source)
    return Table(rows=rows_of(records, columns, names), source=source, columns=columns)


def _text_passages(path: Path) -> list[object]:
    passages: list[object] = [line.strip() for _, line in text_lines(path) if line.strip()]
    if not passages:
        raise DataError(f"'{path}' has no passages; expected one a line.")
    return passages


def _column_passages(records: list[Record], column: str | None, source: str) -> list[object]:
    names = column_names(records)
    if column is None and {"_id", "title", "text"} <= set(names):
        return [corpora.titled_text(record.fields) for record in records]
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
    cells = (record.fields.get(column) for record in records)
    return [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
