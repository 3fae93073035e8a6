"""Texts short enough to show."""

from __future__ import annotations

import unicodedata

LIMIT = 600
"""Characters of a text in `results.json`; a page of passages has to stay readable."""
_ELLIPSIS = "…"
_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_LOW_SURROGATES = range(0xDC00, 0xE000)


def excerpt(text: str, limit: int = LIMIT) -> str:
    """The text if it has at most `limit` characters, otherwise its beginning with an ellipsis, no longer than that.

    The cut is between words; in a text without white space near the limit, between characters as a reader sees
    them: never between a letter and its combining marks, within a joined emoji or a surrogate pair.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit: got {limit}, expected at least 1 character")
    if len(text) <= limit:
        return text
    end = limit - len(_ELLIPSIS)
    space = next((at for at in range(end, end // 2, -1) if text[at].isspace()), None)
    return text[: _between_characters(text, end) if space is None else space].rstrip() + _ELLIPSIS


def _between_characters(text: str, end: int) -> int:
    """The last place up to `end` where a character starts; `end` itself if there is none."""
    return next((at for at in range(end, 0, -1) if not _continues(text, at)), end)


def _continues(text: str, at: int) -> bool:
    """Whether the code point at this place belongs to the character before it."""
    point = text[at]
    return (
        unicodedata.category(point).startswith("M")
        or _JOINER in (point, text[at - 1])
        or ord(point) in _SKIN_TONES
        or ord(point) in _LOW_SURROGATES
    )
