"""Tabular files to records: JSON Lines, JSON, CSV, TSV and Parquet, each plain or gzipped.

All but JSON are read bit by bit, as their records are asked for. Every fault of a file becomes one `DataError` that
names the file, the line, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from embedtune.data.csv_files import csv_records
from embedtune.data.json_files import json_lines, json_records, load_json
from embedtune.data.lines import bare_suffix
from embedtune.data.parquet_files import parquet_records
from embedtune.data.records import MAX_ROWS, Record, shared
from embedtune.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KNOWN_SUFFIXES = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, each also with .gz"


def read_records(path: Path) -> list[Record]:
    """All records of a tabular file, equal texts once in memory.

    Raises:
        DataError: the suffix isn't known, the file is broken, or it has no rows or more than `MAX_ROWS`.
    """
    records: list[Record] = []
    for record in shared(iter_records(path)):
        if len(records) == MAX_ROWS:
            raise DataError(
                f"'{path}' has more than {MAX_ROWS:,} rows, which are held in memory at once. Give a sample of them."
            )
        records.append(record)
    return records


def iter_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The records of a tabular file, read as they are asked for; a `.json` file is read at once.

    Args:
        path: the file.
        columns: those to read of a Parquet file; all by default. Other forms are read whole rows at a time.

    Raises:
        DataError: the suffix isn't known, the file is broken, or it has no rows.
    """
    suffix = bare_suffix(path.name)
    records: Iterable[Record]
    if suffix == ".jsonl":
        records = json_lines(path)
    elif suffix == ".json":
        records = json_records(load_json(path), path)
    elif suffix in (".csv", ".tsv"):
        records = csv_records(path)
    elif suffix == ".parquet":
        records = parquet_records(path, columns)
    else:
        raise DataError(f"'{path}' has the suffix '{suffix}'; expected {KNOWN_SUFFIXES}.")
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise _no_rows(path)


def require_rows(records: list[Record], path: Path) -> list[Record]:
    """The records, if there are any.

    Raises:
        DataError: there are none.
    """
    if not records:
        raise _no_rows(path)
    return records


def _no_rows(path: Path) -> DataError:
    return DataError(f"'{path}' has no rows; expected at least one with a question and a passage.")
