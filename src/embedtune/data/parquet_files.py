"""Parquet to records."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from embedtune.data.lines import open_bytes
from embedtune.data.records import MAX_ROWS, Record
from embedtune.errors import DataError, brief

MAX_ROWS_PER_BYTE = 10
"""A Parquet file with more than `MAX_ROWS`, and more than so many in each of its bytes, is not streamed either."""
PARQUET_BATCH = 64
"""Rows of a Parquet file that are unpacked at a time; a text of 1 MB that all have is there once in the file."""
PARQUET_BUFFER = 2**20
"""Bytes of a Parquet column read at a time; by default it is all that a row group has, often the whole file."""


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
