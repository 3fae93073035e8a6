"""The data: how much there was, what was dropped and why, what leaked, how long the texts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedtune.report.goals import RETRIEVAL, Goal
from embedtune.report.text import Facts, count, counted, present

DROPPED = {
    "duplicate_pairs": "repeat the question and passage of another row",
    "leaked_pairs": "left out of training: their question or passage is in the test or dev set",
    "near_duplicate_pairs": "left out of training: a near-duplicate of their passage is in the test or dev set",
    "non_string": "are not text",
    "empty_anchor": "have no question",
    "empty_positive": "have no passage",
    "anchor_equals_positive": "have one text as both question and passage",
    "empty_passages": "empty passages of the corpus",
    "non_string_negatives": "negatives that are not text",
    "empty_negatives": "empty negatives",
    "negatives_that_are_anchors": "negatives that repeat the question",
    "negatives_that_are_positives": "negatives that answer the question",
    "labelled_0_only": "labelled 0, and no row of the file has a passage that answers their question",
}
DROPPED_GRADED = {
    "leaked_pairs": "left out of training: one of their texts is in the test or dev set",
    "near_duplicate_pairs": "left out of training: a near-duplicate of one of their texts is in the test or dev set",
    "empty_text": "lack one of the two texts",
}
"""Why something was not used, in words."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts in one unit."""

    unit: str
    rows: list[tuple[str, list[str]]]
    """(what, [median, 95th percentile, longest])."""


@dataclass(frozen=True)
class Audit:
    facts: Facts
    dropped: Facts | None
    """(number, reason); None if that is not known."""
    remarks: list[tuple[str, str]]
    """(what, what was found) of leaks, near-duplicates and cut texts."""
    lengths: Lengths | None


def audit(data: Mapping[str, Any], of: Goal = RETRIEVAL) -> Audit:
    """The "data" of the results in words.

    Args:
        data: the section.
        of: what the results are about.
    """
    retrieval = of is RETRIEVAL
    return Audit(
        facts=present(
            data,
            ("pairs to train on", "train_pairs", count),
            ("pairs to choose the checkpoint on (dev)", "dev_pairs", count),
            ("pairs to test on", "test_pairs", count),
            ("distinct test questions", "test_queries", count),
            ("distinct passages to search in", "corpus_passages", count),
        ),
        dropped=_dropped(data.get("dropped"), DROPPED if retrieval else DROPPED | DROPPED_GRADED),
        remarks=_remarks(data, "passage" if retrieval else "text"),
        lengths=_lengths(data.get("lengths") or {}),
    )


def _dropped(dropped: Mapping[str, int] | None, reasons: Mapping[str, str]) -> Facts | None:
    if dropped is None:
        return None
    return [
        (count(number), reasons.get(reason, reason.replace("_", " "))) for reason, number in dropped.items() if number
    ]


def _remarks(data: Mapping[str, Any], text: str) -> list[tuple[str, str]]:
    remarks = []
    leaks = data.get("leaks")
    if leaks:
        remarks.append(("Leaks", _leaks(leaks, text)))
    near = data.get("near_duplicates")
    if near:
        found = (
            f"{counted(near['passages'], text)} in {counted(near['groups'], 'group')}" if near["passages"] else "none"
        )
        remarks.append(("Near-duplicates", f"{found} (at least {near['threshold']:g} alike)"))
    truncated = data.get("truncated_passages")
    if truncated is not None:
        limit = (data.get("lengths") or {}).get("limit")
        longer = "are longer than the model reads" if limit is None else f"are longer than the {limit:,} tokens read"
        words = f"{counted(truncated, text)} {longer}; the rest of them is not seen" if truncated else "none"
        remarks.append(("Cut texts", words))
    return remarks


def _leaks(leaks: Mapping[str, Any], text: str) -> str:
    near = leaks.get("near_duplicates")
    if not leaks.get("pairs") and not near:
        return "none: no training row shares a text with the held-out sets"
    shared = [
        counted(leaks[key], noun)
        for key, noun in (("test_passages", f"test {text}"), ("test_queries", "test question"))
        if leaks.get(key)
    ]
    words = f"{counted(leaks.get('pairs', 0), 'training row')} left out"
    if shared:
        words += f"; they share {' and '.join(shared)}"
    if near:
        words += f"; {near:,} more with a near-duplicate of a held-out {text}"
    return words


def _lengths(lengths: Mapping[str, Any]) -> Lengths | None:
    names = {"sentences": "sentences", "queries": "questions", "passages": "passages"}
    rows = [
        (name, [f"{lengths[key][part]:,.0f}" if part in lengths[key] else "–" for part in ("median", "p95", "max")])
        for key, name in names.items()
        if lengths.get(key)
    ]
    return Lengths(lengths.get("unit", "tokens"), rows) if rows else None
