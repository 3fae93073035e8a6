"""Tabular files to records: JSON Lines, JSON, CSV, TSV and Parquet, each plain or gzipped.

All but JSON are read bit by bit, as their records are asked for. Every fault of a file becomes one `DataError` that
names the file, the line, and what to do about it.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from embedtune.data.lines import bare_suffix, open_bytes, text_lines, whole_text
from embedtune.data.records import Record, SharedTexts, shared
from embedtune.errors import DataError, brief

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KNOWN_SUFFIXES = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, each also with .gz"
MAX_FIELD_CHARACTERS = 10_000_000
"""Longest CSV field; a quote that is never closed would otherwise swallow the rest of the file."""
MAX_ROWS = 10_000_000
"""Rows that are read at once, as pairs are: ten million short ones, all distinct, take about 6 GB."""
MAX_ROWS_PER_BYTE = 10
"""A Parquet file with more than `MAX_ROWS`, and more than so many in each of its bytes, is not streamed either."""
PARQUET_BATCH = 64
"""Rows of a Parquet file that are unpacked at a time; a text of 1 MB that all have is there once in the file."""
PARQUET_BUFFER = 2**20
"""Bytes of a Parquet column read at a time; by default it is all that a row group has, often the whole file."""


def parse_json(text: str, path: Path, line: int = 1, *, texts: SharedTexts | None = None) -> object:
    """The JSON value that `text` holds.

    Args:
        text: to be parsed.
        path: where it is from.
        line: number of its first line in the file.
        texts: through which equal texts become one.

    Raises:
        DataError: it isn't JSON, or is nested too deeply to be parsed.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=None if texts is None else texts.fields)
    except json.JSONDecodeError as error:
        where = f"'{path}', line {line + error.lineno - 1}"
        raise DataError(
            f"{where}: not valid JSON ({error.msg}, column {error.colno}). Repair that line; "
            f"if it is the last one, the file may be cut off."
        ) from error
    except RecursionError as error:
        raise DataError(f"'{path}', line {line}: JSON nested too deeply; expected flat rows.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"'{path}', line {line}: JSON that can't be read ({error}).") from error
    return value


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a JSON Lines file, one line at a time; blank lines are skipped.

    Raises:
        DataError: a line isn't a JSON object.
    """
    for number, line in text_lines(path):
        if not line.strip():
            continue
        value = parse_json(line, path, number)
        if not isinstance(value, dict):
            raise DataError(
                f"'{path}', line {number}: received {_shortened(value)}; expected a JSON object a line, "
                f'such as {{"anchor": "a question", "positive": "a passage"}}.'
            )
        yield Record(f"{path.name}:{number}", value)


def load_json(path: Path) -> object:
    """The value of a `.json` file; a list of `Record` if the file holds JSON Lines under that name.

    `datasets.Dataset.to_json("train.json")` and pandas write JSON Lines into such names, so they are common.

    Raises:
        DataError: it is neither.
    """
    text = whole_text(path)
    first = re.search(r"\S[^\n]*", text)
    if first and re.compile(r"\S").search(text, first.end()) and _is_json_object(first[0]):
        return list(shared(json_lines(path)))
    return parse_json(text, path, texts=SharedTexts())


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_records(content: object, path: Path) -> list[Record]:
    """The records of what `load_json` gave.

    Raises:
        DataError: `content` isn't a list of objects.
    """
    if not isinstance(content, list):
        raise DataError(
            f"'{path}' holds {_shortened(content)}; expected a list of objects with a question and "
            f"a passage each, or the LlamaIndex form with 'queries', 'corpus' and 'relevant_docs'."
        )
    for number, item in enumerate(content, 1):
        if not isinstance(item, (dict, Record)):
            raise DataError(f"'{path}', item {number} of the list: received {_shortened(item)}; expected an object.")
    return [
        item if isinstance(item, Record) else Record(f"{path.name}[{number}]", item)
        for number, item in enumerate(content, 1)
    ]


def _shortened(value: object) -> str:
    if isinstance(value, dict):
        names = ", ".join(f"'{brief(name)}'" for name in list(value)[:8])
        return f"an object with {names or 'no keys'}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # parsed with a few levels to spare
        text = "nested too deeply to show"
    return f"{type(value).__name__} {brief(text)}"


def csv_records(path: Path) -> Iterator[Record]:
    """The rows under the header of a CSV or TSV file; blank lines are skipped.

    Raises:
        DataError: a row has more or fewer fields than the header, or breaks the quoting rules.
    """
    lines = (line for _, line in text_lines(path))
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), delimiter=_delimiter(path, first), strict=True)
    header: list[str] = []
    start = 1
    while (fields := _next_row(reader, path, start)) is not None:
        if fields and not header:
            header = _checked_header(fields, path)
        elif fields:
            if len(fields) != len(header):
                raise DataError(
                    f"'{path}', line {start}: {len(fields)} fields; expected {len(header)} as in the "
                    f"header ({_names(header)}). Put a field that holds the delimiter in double quotes."
                )
            yield Record(f"{path.name}:{start}", dict(zip(header, fields, strict=True)))
        start = reader.line_num + 1


def _next_row(reader: Iterator[list[str]], path: Path, start: int) -> list[str] | None:
    # The limit is the whole process's, and between two rows anybody's code may run.
    limit_before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(
            f"'{path}', the row that starts at line {start}: not valid CSV ({error}). A field with "
            f'quotes, delimiters or line breaks goes in double quotes, a quote inside it is written "", '
            f"and a field has at most {MAX_FIELD_CHARACTERS:,} characters."
        ) from error
    finally:
        csv.field_size_limit(limit_before)


def _delimiter(path: Path, header: str) -> str:
    if bare_suffix(path.name) == ".tsv":
        return "\t"
    # Spreadsheets write semicolons where the comma is the decimal sign.
    return ";" if ";" in header and "," not in header else ","


def _checked_header(header: list[str], path: Path) -> list[str]:
    seen = set[str]()
    for name in header:
        if name in seen:
            raise DataError(f"'{path}': the header has the column '{brief(name)}' twice. Rename or remove one of them.")
        seen.add(name)
    return header


def _names(names: list[str]) -> str:
    return ", ".join(f"'{brief(name)}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        DataError: it isn't a whole Parquet file.
    """
    with _parquet_file(path, lambda: 0) as file:
        names: list[str] = file.schema_arrow.names
        return names


def parquet_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """The rows of a Parquet file, numbered from 1.

    Args:
        path: the file.
        columns: those to read; all by default.

    Raises:
        DataError: it isn't a whole Parquet file.
    """
    number = 0
    with _parquet_file(path, lambda: number) as file:
        for batch in file.iter_batches(PARQUET_BATCH, columns=columns):
            for fields in batch.to_pylist():
                number += 1
                yield Record(f"{path.name}:{number}", fields)


@contextmanager
def _parquet_file(path: Path, rows_read: Callable[[], int]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with open_bytes(path) as stream, _seekable(stream, path) as content:
        try:
            file = pq.ParquetFile(content, buffer_size=PARQUET_BUFFER, pre_buffer=False)
            rows, size = file.metadata.num_rows, content.seek(0, os.SEEK_END)
            if rows > max(MAX_ROWS, MAX_ROWS_PER_BYTE * size):
                raise ValueError(f"it says to hold {rows:,} rows in {size:,} bytes")
            yield file
        except Exception as error:  # what pyarrow raises on a damaged file, or on values Python has none for, is open
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"'{path}' can't be read as Parquet after {rows_read()} rows ({brief(reason, 200)}). "
                f"Is it a whole Parquet file? Download or write it again."
            ) from error


@contextmanager
def _seekable(stream: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """The bytes where one can jump about in them: a packed file is unpacked to a temporary one."""
    if not path.name.lower().endswith(".gz"):
        yield stream
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked)
        yield unpacked


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
