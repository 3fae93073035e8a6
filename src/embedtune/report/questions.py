"""Single questions to read: what the model lost, what it gained, and labels that may be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedtune.report.systems import NAMES, lead, reference
from embedtune.report.text import count, counted

SHOWN_LENGTH = 600
"""Characters of a text that are shown at once."""
MOST_LENGTH = 6_000
"""Characters of a text that the page holds: it is read, not archived."""
OPEN_CASES = 5
"""Regressions in view; the others are behind a click."""


@dataclass(frozen=True)
class Excerpt:
    """A text as far as it is shown."""

    start: str
    whole: str
    """The text from its beginning, if there is more than `start`; else empty."""
    length: str
    """Characters of the text, in words."""


@dataclass(frozen=True)
class Passage:
    """A passage with what is said of it."""

    label: str
    text: Excerpt


@dataclass(frozen=True)
class Case:
    """One question and how the systems ranked its right passage."""

    query: Excerpt
    ranks: list[tuple[str, str]]
    """(system, place)."""
    change: str
    positive: Excerpt
    above: list[Passage]


@dataclass(frozen=True)
class Suspect:
    """A question whose label may be wrong."""

    query: Excerpt
    passages: list[Passage]
    found_by: str


@dataclass(frozen=True)
class Suspects:
    count: str
    file: str
    examples: list[Suspect]


@dataclass(frozen=True)
class Questions:
    """All that there is to read."""

    counts: list[tuple[str, str]]
    regressions: list[Case]
    more_regressions: list[Case]
    gains: list[Case]
    worst: list[Case]
    """Instead of the others where there was nothing to compare with."""


def excerpt(text: str) -> Excerpt:
    """A text's beginning, cut at a space if there is one near, and the rest to open."""
    length = f"{count(len(text))} characters"
    if len(text) <= SHOWN_LENGTH:
        return Excerpt(text, "", length)
    cut = text.rfind(" ", SHOWN_LENGTH - 80, SHOWN_LENGTH)
    start = text[: cut if cut > 0 else SHOWN_LENGTH].rstrip() + " …"
    whole = text if len(text) <= MOST_LENGTH else text[:MOST_LENGTH] + " …"
    return Excerpt(start, whole, length)


def questions(results: Mapping[str, Any]) -> Questions | None:
    """How many questions changed, and the ones to read; None if that is not known."""
    entry = results.get("queries")
    if not entry:
        return None
    counts = [(count(entry[key]), key) for key in ("better", "worse", "equal") if entry.get(key) is not None]
    regressions = [_case(case, results) for case in entry.get("regressions") or []]
    return Questions(
        counts=[(number, {"equal": "the same"}.get(name, name)) for number, name in counts],
        regressions=regressions[:OPEN_CASES],
        more_regressions=regressions[OPEN_CASES:],
        gains=[_case(case, results) for case in entry.get("gains") or []],
        worst=[_case(case, results) for case in entry.get("worst") or []],
    )


def suspects(results: Mapping[str, Any]) -> Suspects | None:
    """Questions whose label may be wrong, and the file to mark them in; None if none were found."""
    entry = results.get("suspects")
    if not entry or not entry.get("count"):
        return None
    return Suspects(
        count=counted(entry["count"], "question"),
        file=entry.get("file", "suspects.jsonl"),
        examples=[_suspect(example) for example in entry.get("examples") or []],
    )


def _case(case: Mapping[str, Any], results: Mapping[str, Any]) -> Case:
    ranks = {key: place for key, place in case.get("rank", {}).items() if key in NAMES}
    compared, change = reference(results), _rank(ranks.get(lead(results)))
    return Case(
        query=excerpt(case["query"]),
        ranks=[(NAMES[key], _rank(ranks[key])) for key in NAMES if key in ranks],
        change=change if compared is None else f"{_rank(ranks.get(compared))} → {change}",
        positive=excerpt(case["positive"]),
        above=[
            Passage(f"Ranked above it, score {passage['score']:.3f}", excerpt(passage["text"]))
            for passage in case.get("above") or []
        ],
    )


def _suspect(example: Mapping[str, Any]) -> Suspect:
    scores = example.get("scores", {})

    def label(words: str, key: str) -> str:
        return words + (f", score {scores[key]:.3f}" if scores.get(key) is not None else "")

    return Suspect(
        query=excerpt(example["query"]),
        passages=[
            Passage(label("Labelled right", "positive"), excerpt(example["positive"])),
            Passage(label("Ranked first", "candidate"), excerpt(example["candidate"])),
        ],
        found_by=", ".join(NAMES.get(key, key) for key in example.get("found_by") or []),
    )


def _rank(place: int | None) -> str:
    return "below 100" if place is None else f"{place:,}"
