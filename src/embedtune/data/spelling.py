"""Which spellings are one text, and how a text is kept.

Two texts are one text if they differ only in what a reader does not see: Unicode form, white space, zero-width
characters. Two passages are one even if they differ in the punctuation between their words, as a title and its text do
that one file joins by a full stop and another by a space: the second copy would count as a wrong answer.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

# NUL, soft hyphen, zero-width characters, joiners and marks of direction, byte order mark.
_INVISIBLE = re.compile("[\0\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

_FEW_MARKS = 1_000
"""Combining marks that take no time to sort, wherever they are."""


def text_key(text: str) -> str:
    """What two spellings of one text have in common: NFKC, no invisible characters, white space collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _stream_safe(_INVISIBLE.sub("", text)))
    elif "\0" in text:
        text = text.replace("\0", "")
    return " ".join(text.split())


_BETWEEN_WORDS = re.compile(r"[.,;:!?…]+(?!\S)|[。、]+|(?<!\S)[-–—|·•#]+(?!\S)")
"""Punctuation that a word ends with, and dashes, bars and marks of lists and headings that stand alone. What is in a
word or before it may be what the text is about: 1.5, C++, -5, .env."""


def passage_key(text: str) -> bytes:
    """What two spellings of one passage have in common: the `text_key` without punctuation between words, in 16 bytes.

    A passage of nothing else is told by that. The bytes are a hash, which keeps a corpus from being in memory twice;
    among 10^12 passages two different ones have the same with a probability of 10^-15.
    """
    return passage_key_of(text_key(text))


def passage_key_of(key: str) -> bytes:
    """The `passage_key` of a text whose `text_key` is known: to make that is most of the work."""
    words = " ".join(_BETWEEN_WORDS.sub(" ", key).split())
    return hashlib.blake2b((words or key).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _stream_safe(text: str) -> str:
    """The text with a grapheme joiner after each 30 combining marks in a row, where it is long enough to matter.

    Normalisation sorts marks, in Python in the square of their number: a line of 1 MB of them takes four minutes, one
    of 10 MB hours. No language has more than a few on a letter.

    Source: Unicode Standard Annex 15, section 13, "Stream-Safe Text Format".
    """
    if len(text) <= _FEW_MARKS:
        return text
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if np.count_nonzero(_is_mark()[points]) <= _FEW_MARKS:
        return text
    marks = "".join(map(chr, np.flatnonzero(_is_mark())))
    return re.sub(f"[{marks}]{{30}}(?=[{marks}])", "\\g<0>\u034f", text)


@cache
def _is_mark() -> npt.NDArray[np.bool_]:
    """For each code point whether it is a combining mark, or becomes marks alone."""
    is_mark = np.zeros(0x110000, dtype=np.bool_)
    for point in range(0x300, 0x1F000):  # there are none before and behind
        is_mark[point] = unicodedata.combining(unicodedata.normalize("NFKD", chr(point))[0])
    return is_mark


def spelling(text: str) -> str:
    """The text as kept: stripped; half a surrogate pair, which no tokenizer or file takes, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()


def key_of(value: object) -> str | None:
    """The text key of a value; "" if there is nothing to read, `None` if it isn't text."""
    if value is None:
        return ""
    return text_key(value) if isinstance(value, str) else None
