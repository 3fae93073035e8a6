"""Embeddings to a file, a chunk at a time: Parquet, or a NumPy matrix.

Shapes: `C` texts of a chunk, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from embedtune.atomic import replacing
from embedtune.errors import OutputError

Write = Callable[[Sequence[str], Tensor], None]
"""Writes a chunk: C texts and their embeddings (C, E) in fp32."""


def check_place(out: Path) -> None:
    """Whether such a file can be written there, as far as its name tells.

    Raises:
        OutputError: its suffix isn't known, or its folder does not exist.
    """
    if out.suffix not in (".npy", ".parquet"):
        raise OutputError(f"--out {out}: got '{out.suffix}', expected .npy or .parquet.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"--out {out}: its folder {out.absolute().parent} does not exist.")


@contextmanager
def writing(out: Path, *, size: int) -> Iterator[Write]:
    """A file of embeddings of that size, to be written a chunk at a time.

    It takes its place when the block ends; if the block fails, what was there stays.

    Raises:
        OutputError: it can't be written.
    """
    form = _matrix if out.suffix == ".npy" else _parquet
    try:
        with replacing(out) as unfinished, open(unfinished, "wb") as stream, form(stream, size) as write:
            yield write
    except OSError as error:  # of nothing else in the block: reading gives DataError
        raise OutputError(f"--out {out} can't be written: {error.strerror or error}.") from error


@contextmanager
def _parquet(stream: IO[bytes], size: int) -> Iterator[Write]:
    """Columns text and embedding, a row group a chunk."""
    schema = pa.schema([("text", pa.string()), ("embedding", pa.list_(pa.float32(), size))])
    with pq.ParquetWriter(stream, schema, use_dictionary=["text"]) as writer:  # no embedding comes twice

        def write(texts: Sequence[str], embeddings_CE: Tensor) -> None:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_CE.numpy().ravel()), size)
            writer.write_table(pa.table([pa.array(texts, pa.string()), flat], schema=schema))

        yield write


@contextmanager
def _matrix(stream: IO[bytes], size: int) -> Iterator[Write]:
    """A float32 matrix, whose number of rows goes into its header at the end."""
    rows = 0

    def write(texts: Sequence[str], embeddings_CE: Tensor) -> None:
        nonlocal rows
        rows += len(embeddings_CE)
        stream.write(np.ascontiguousarray(embeddings_CE.numpy(), dtype="<f4").data)

    # NumPy leaves space in a header for a longer number of rows.
    start = _write_header(stream, rows, size)
    yield write
    stream.seek(0)
    assert _write_header(stream, rows, size) == start


def _write_header(stream: IO[bytes], rows: int, size: int) -> int:
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell()
