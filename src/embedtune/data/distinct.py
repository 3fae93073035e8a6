"""Texts that are one text however they are spelled, numbered as they come."""

from __future__ import annotations

from embedtune.data.spelling import passage_key_of, spelling, text_key


class DistinctTexts:
    """Distinct texts in the order and spelling first seen."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self._ids: dict[str, int] = {}

    def add(self, key: str, text: str, *, of_corpus: bool = False) -> int:
        """The id of the text with this `text_key`."""
        known = self._ids.get(key)
        if known is not None:
            return known
        kept = spelling(text)
        # One string in memory instead of two where the spelling is its own key, as it mostly is.
        self._ids[kept if kept == key else key] = len(self.texts)
        self.texts.append(kept)
        return len(self.texts) - 1

    def find(self, key: str) -> int | None:
        """The id of the text with this `text_key`, if it is known."""
        return self._ids.get(key)


class DistinctPassages:
    """Distinct passages in the order first seen, where punctuation between words makes no other passage."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.respelled: dict[int, str] = {}
        """Passage id to another punctuation that it came in."""
        self._ids: dict[bytes, int] = {}

    def add(self, key: str, text: str, *, of_corpus: bool = False) -> int:
        """The id of the passage with this `text_key`.

        The punctuation first seen is kept, unless a corpus has another: it is what will be searched, and answers that
        are punctuated otherwise than the passages around them could be told by that.
        """
        kept = spelling(text)
        known = self._ids.setdefault(passage_key_of(key), len(self.texts))
        if known == len(self.texts):
            self.texts.append(kept)
        elif kept != self.texts[known] and key != text_key(self.texts[known]):
            if of_corpus:
                kept, self.texts[known] = self.texts[known], kept
            self.respelled.setdefault(known, kept)
        return known
