"""Texts cut to a length: never within a word or within what a reader sees as one character."""

from __future__ import annotations

import unicodedata

import pytest

from embedtune.evaluation.excerpt import LIMIT, excerpt


def test_short_texts_stay_as_they_are() -> None:
    assert excerpt("") == ""
    assert excerpt("x" * LIMIT) == "x" * LIMIT
    assert excerpt(" kept \n as is ") == " kept \n as is "


def test_long_texts_end_between_words() -> None:
    assert excerpt("one two three four", 12) == "one two…"
    assert excerpt("one two three four", 14) == "one two three…"
    shown = excerpt("word " * 500)
    assert len(shown) <= LIMIT
    assert shown.endswith("word…")


@pytest.mark.parametrize("limit", range(12, 40))
def test_a_letter_keeps_its_combining_marks(limit: int) -> None:
    text = "n\u0303o\u0308\u0323" * 20
    shown = excerpt(text, limit)
    rest = text[len(shown) - 1 :]
    assert shown.endswith("…")
    assert len(shown) <= limit
    assert text.startswith(shown[:-1])
    assert not unicodedata.combining(rest[0])


@pytest.mark.parametrize("limit", range(8, 40))
@pytest.mark.parametrize("cluster", ["👩\u200d👩\u200d👧", "👍\U0001f3fd", "❤\ufe0f", "\ud83d\ude00", "हि"])
def test_a_joined_character_is_never_cut(cluster: str, limit: int) -> None:
    shown = excerpt(cluster * 30, limit)[:-1]
    assert 0 < len(shown) < limit
    assert shown == cluster * (len(shown) // len(cluster))


def test_texts_without_spaces_are_cut_near_the_limit() -> None:
    assert excerpt("漢" * 700) == "漢" * (LIMIT - 1) + "…"
    assert excerpt("a " + "漢" * 700) == "a " + "漢" * (LIMIT - 3) + "…"


def test_marks_without_end_are_cut_all_the_same() -> None:
    assert len(excerpt("a" + "\u0301" * 2000)) == LIMIT


def test_a_limit_that_holds_nothing_is_refused() -> None:
    assert excerpt("ab", 1) == "…"
    with pytest.raises(ValueError, match="got 0, expected at least 1"):
        excerpt("ab", 0)
