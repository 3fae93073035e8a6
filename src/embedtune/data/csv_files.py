"""CSV and TSV to records."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from embedtune.data.lines import bare_suffix, text_lines
from embedtune.data.records import Record
from embedtune.errors import DataError, brief

MAX_FIELD_CHARACTERS = 10_000_000
"""Longest CSV field; a quote that is never closed would otherwise swallow the rest of the file."""


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
