"""Embed the texts of a file, however large: read, tokenised, embedded and written a chunk at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from embedtune.config import ModelConfig
from embedtune.data.ahead import ahead
from embedtune.data.read import stream_passages
from embedtune.data.tokens import TokenTable
from embedtune.errors import DataError, quoted
from embedtune.export.vectors import check_place, writing
from embedtune.loading import load
from embedtune.models.encoder import Encoder, Role
from embedtune.paths import expanded
from embedtune.progress import Reporter, SilentReporter

CHUNK_TEXTS = 16_384
"""Texts of a chunk, which are sorted by length and embedded together; a dozen full batches on CUDA if they are of a
hundred tokens. Their embeddings take 25 MB if they have 384 numbers each."""
CHUNK_CHARACTERS = 2**24
"""A chunk ends here at the latest, so that one of long texts takes no more memory than one of passages."""
OVERLAPPED = ("cuda",)
"""Devices beside which the next chunk is read and tokenised. On a CPU that is 2 % of the time, and shares the cores."""


class Chunk(NamedTuple):
    """Some of the texts, one after another in the file."""

    texts: list[str]
    tokens: TokenTable


def encode_file(
    model: ModelConfig,
    source: str,
    out: Path,
    *,
    column: str | None = None,
    role: Role = "passage",
    reporter: Reporter | None = None,
) -> tuple[int, int]:
    """Embed every text of a file, in its order, and write the embeddings; neither need fit in memory.

    The file is read twice: a fault in its last line is told before anything is computed.

    Args:
        model: `base` is the model to embed with.
        source: a file of texts, in any form that `--corpus` takes.
        out: `.npy`, a float32 matrix, or `.parquet` with the columns text and embedding.
        column: of the texts, if its name is not recognised.
        role: which of the model's prompts to use.
        reporter: is told how it goes.

    Returns:
        The number of texts and the size of an embedding.

    Raises:
        UserError: the file, the model or the output can't be used.
    """
    reporter = reporter or SilentReporter()
    check_place(out)
    # A pipe can't be read twice.
    total = None if expanded(source).is_fifo() else _count(_texts(source, column), reporter)
    encoder = load(model, reporter)
    size, done = encoder.embedding_size, 0
    chunks = _chunks(_texts(source, column), encoder, role)
    if encoder.device.type in OVERLAPPED:
        chunks = ahead(chunks)
    with (
        closing(chunks),
        writing(out, size=size) as write,
        reporter.counting("encoding", total) as advance,
    ):
        for chunk in chunks:
            write(chunk.texts, encoder.embed_all(chunk.tokens, on_progress=advance))
            done += len(chunk.texts)
    return done, size


def _texts(source: str, column: str | None) -> Iterator[str]:
    for number, value in enumerate(stream_passages(source, column=column), 1):
        if not isinstance(value, str):
            raise DataError(f"'{source}': text {number} is {quoted(value)}, expected a string.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"'{source}': text {number} has {value[error.start]!r} at character {error.start + 1}, which is half a "
                "character; expected Unicode text. Remove it, or write the whole pair."
            ) from error
        yield value


def _count(texts: Iterable[str], reporter: Reporter) -> int:
    count = 0
    with reporter.counting("checking", None) as advance:
        for count, _ in enumerate(texts, 1):
            if count % CHUNK_TEXTS == 0:
                advance(CHUNK_TEXTS)
    return count


def _chunks(texts: Iterable[str], encoder: Encoder, role: Role) -> Generator[Chunk, None, None]:
    for chunk in _cut(texts):
        yield Chunk(chunk, encoder.token_table(chunk, role))


def _cut(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
