"""Files to lines of text, plain or gzipped. Every fault becomes one `DataError` that names the file and the line.

Of a file that is no text, however long it is unpacked, little is read.
"""

from __future__ import annotations

import difflib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from embedtune.errors import DataError

MAX_LINE_BYTES = 2**25
"""Longest line, 32 MiB; a file without line ends would otherwise be one. Of `.json` files the whole is one value."""
MAX_BLANK_LINES = 1_000_000
"""In a row; more are no separation of rows, but a file that is damaged or made to take long."""
MAX_UNPACKED_BYTES, MAX_RATIO = 2**30, 200
MAX_UNPACKED_JSON_BYTES, MAX_JSON_RATIO = 2**27, 30
"""A gzipped file that is longer than this unpacked, 1 GiB (128 MiB of JSON, which is read at once and can take twenty
times its size), and so many times longer than packed, is refused. Texts get three to ten times shorter;
a line that is repeated gets a few hundred times shorter, and zeros a thousand times."""


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
    except (OSError, ValueError):  # of a name with a NUL, or half a character
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
        size = os.path.getsize(path)
    except (FileNotFoundError, ValueError) as error:  # a ValueError for a name with a NUL, or half a character
        raise no_such_file(path) from error
    except OSError:
        size = -1  # said when it is opened
    try:
        if size == 0 and path.is_file():
            raise DataError(f"'{path}' is empty (0 bytes); expected rows with a question and a passage.")
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as packed, io.BufferedReader(_Unpacked(packed, path)) as stream:
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


class _Unpacked(io.RawIOBase):
    """The bytes of a gzipped file as long as they can be texts, and not a bomb."""

    def __init__(self, packed: gzip.GzipFile, path: Path) -> None:
        self._packed, self._path, self._bytes = packed, path, 0
        is_json = bare_suffix(path.name) == ".json"
        self._ratio = MAX_JSON_RATIO if is_json else MAX_RATIO
        most = MAX_UNPACKED_JSON_BYTES if is_json else MAX_UNPACKED_BYTES
        self._limit = max(most, self._ratio * os.path.getsize(path)) if path.is_file() else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._packed.readinto(buffer)
        self._bytes += count
        if self._limit is not None and self._bytes > self._limit:
            raise DataError(
                f"'{self._path}' unpacks to more than {self._limit // 2**20:,} MiB, over {self._ratio} times its size; "
                f"texts don't pack like that. If it is right all the same, unpack it first. Type:  "
                f"gunzip --keep '{self._path}'"
            )
        return count


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines with their ends; only `\\n` ends a line, U+2028 and the like do not.

    Raises:
        DataError: a line isn't UTF-8 text, or is longer than `MAX_LINE_BYTES`, or too many are blank.
    """
    with open_bytes(path) as stream:
        number = last = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            text = _decoded(raw, path, number)
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(
                    f"'{path}', line {number}: longer than {MAX_LINE_BYTES // 2**20} MiB; expected a row a line. Has "
                    "the file lost its line ends?"
                )
            if not raw.isspace():
                last = number
            elif number - last > MAX_BLANK_LINES:
                raise DataError(
                    f"'{path}', line {last + 1}: more than {MAX_BLANK_LINES:,} blank lines from here on; "
                    "expected rows. Take them out."
                )
            yield number, text


def _decoded(raw: bytes, path: Path, number: int) -> str:
    """The text of some lines, of which the first has this number."""
    if number == 1:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"'{path}' is UTF-16 text; expected UTF-8. Save it again as UTF-8.")
        if raw.startswith(b"\x1f\x8b"):
            raise DataError(f"'{path}' is gzipped but its name doesn't say so. Rename it to '{path.name}.gz'.")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if (position := raw.find(b"\0")) >= 0:
        line, byte = _place(raw, position, number)
        raise DataError(
            f"'{path}', line {line}: a NUL byte at byte {byte} of the line; expected text. "
            f"Is it really a {bare_suffix(path.name)} file?"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = _place(raw, error.start, number)
        raise DataError(
            f"'{path}', line {line}: not UTF-8 text (0x{raw[error.start]:02x} at byte {byte} "
            f"of the line). Save the file as UTF-8; from Latin-1, type:  "
            f"iconv -f latin1 -t utf-8 '{path}' > utf8-{path.name.removesuffix('.gz')}"
        ) from error


def _place(raw: bytes, position: int, number: int) -> tuple[int, int]:
    """Line and byte of the line, both from 1, of a position in lines of which the first has this number."""
    return number + raw.count(b"\n", 0, position), position - raw.rfind(b"\n", 0, position)


def whole_text(path: Path) -> str:
    """All text of a file.

    Raises:
        DataError: it isn't UTF-8 text.
    """
    blocks = []
    with open_bytes(path) as stream:
        while block := stream.read(2**20):
            blocks.append(block)
            if b"\0" in block:  # no text, however much of it there is
                break
    return _decoded(b"".join(blocks), path, 1)
