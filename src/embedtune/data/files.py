"""Tabular files to records: JSON Lines, JSON, CSV, TSV and Parquet, each plain or gzipped.

All but JSON are read bit by bit, as their records are asked for. Every fault of a file becomes one `DataError` that
names the file, the line, and what to do about it.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from embedtune.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KNOWN_SUFFIXES = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, each also with .gz"
MAX_FIELD_CHARACTERS = 10_000_000
"""Longest CSV field; a quote that is never closed would otherwise swallow the rest of the file."""
PARQUET_BATCH = 4_096
"""Rows of a Parquet file that are Python objects at a time."""
PARQUET_BUFFER = 2**20
"""Bytes of a Parquet column read at a time; by default it is all that a row group has, often the whole file."""


class Record(NamedTuple):
    """One object of a file: a JSON object, or a line under its header."""

    origin: str
    """Where it stands: `train.jsonl:17`."""
    fields: dict[str, object]


def bare_suffix(name: str) -> str:
    """The suffix that tells the form, in lower case and without `.gz`: `.jsonl` for `Train.JSONL.gz`."""
    lower = name.lower()
    return os.path.splitext(lower.removesuffix(".gz"))[1]


def bare_stem(name: str) -> str:
    """The file name without folder, `.gz` and suffix: `train` for `data/train.jsonl.gz`."""
    base = Path(name).name
    return os.path.splitext(base[:-3] if base.lower().endswith(".gz") else base)[0]


def no_such_file(path: Path) -> DataError:
    """The error for a path that does not exist, with the closest name in its folder."""
    folder = path.parent
    try:
        neighbours = os.listdir(folder)
    except OSError:
        return DataError(f"No such file: '{path}' (nor can the folder '{folder}' be listed). Check the path.")
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    hint = f"Did you mean '{folder / close[0]}'?" if close else f"Check the name and the folder '{folder}'."
    return DataError(f"No such file: '{path}'. {hint}")


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if its name ends in `.gz`.

    Raises:
        DataError: it can't be opened, is empty, or breaks while it is read inside the `with` block.
    """
    try:
        if os.path.getsize(path) == 0 and path.is_file():
            raise DataError(f"'{path}' is empty (0 bytes); expected rows with a question and a passage.")
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as packed, io.BufferedReader(packed) as stream:
                yield stream
        else:
            with open(path, "rb") as stream:
                yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"'{path}' is not a whole gzip file ({error}). Download or pack it again; "
            f"if it isn't packed at all, take '.gz' off its name."
        ) from error
    except PermissionError as error:
        raise DataError(f"No permission to read '{path}'. Type:  chmod u+r '{path}'") from error
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error.strerror or error}.") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines with their ends; only `\\n` ends a line, U+2028 and the like do not.

    Raises:
        DataError: a line isn't UTF-8 text.
    """
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            yield number, _decoded(raw, path, number)


def _decoded(raw: bytes, path: Path, number: int) -> str:
    if number == 1:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"'{path}' is UTF-16 text; expected UTF-8. Save it again as UTF-8.")
        if raw.startswith(b"\x1f\x8b"):
            raise DataError(f"'{path}' is gzipped but its name doesn't say so. Rename it to '{path.name}.gz'.")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if (position := raw.find(b"\0")) >= 0:
        raise DataError(
            f"'{path}', line {number}: a NUL byte at byte {position + 1} of the line; expected text. "
            f"Is it really a {bare_suffix(path.name)} file?"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}', line {number}: not UTF-8 text (0x{raw[error.start]:02x} at byte {error.start + 1} "
            f"of the line). Save the file as UTF-8; from Latin-1, type:  "
            f"iconv -f latin1 -t utf-8 '{path}' > utf8-{path.name.removesuffix('.gz')}"
        ) from error


def parse_json(text: str, path: Path, line: int = 1) -> object:
    """The JSON value that `text` holds; `line` is the number of its first line in the file.

    Raises:
        DataError: it isn't JSON, or is nested too deeply to be parsed.
    """
    try:
        value: object = json.loads(text)
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
    lines = [line for _, line in text_lines(path)]
    if sum(1 for line in lines if line.strip()) > 1 and _is_json_object(next(filter(str.strip, lines))):
        return list(json_lines(path))
    return parse_json("".join(lines), path)


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
        names = ", ".join(f"'{name}'" for name in list(value)[:8])
        return f"an object with {names or 'no keys'}"
    text = json.dumps(value, ensure_ascii=False)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


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
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"'{path}': the header has the column '{name}' twice. Rename or remove one of them.")
    return header


def _names(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(path) as stream, _seekable(stream, path) as content:
        try:
            yield pq.ParquetFile(content, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"'{path}' can't be read as Parquet after {rows_read()} rows ({reason}). "
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
    """All records of a tabular file.

    Raises:
        DataError: the suffix isn't known, the file is broken, or it has no rows.
    """
    return list(iter_records(path))


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
