"""What a run found out, in one sentence that claims no more than the interval allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

METRIC = "ndcg@10"
"""The metric that a run is judged by."""
SIGNIFICANT = 0.05
"""A p-value above it leaves the difference open, whatever the interval: a bootstrap of few questions is too narrow."""
FEWEST_GROUPS = 50
"""Independent groups of test questions below which intervals are rough."""
LARGEST_DETECTABLE = 0.05
"""A test set that would miss a larger true difference than this is called small."""

Outcome = Literal["better", "worse", "open"]


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence, in ASCII for any terminal: better, worse or open, the numbers, and BM25 where it is ahead.

    Args:
        results: the content of `results.json`; read are "data", "base", "tuned", "delta" and, if there, "bm25".
    """
    count, difference = results["data"]["test_queries"], results["delta"][METRIC]
    questions = "question" if count == 1 else "questions"
    finding = {
        "better": "the tuned model finds the right passage better than the base model",
        "worse": "the tuned model finds the right passage worse than the base model",
        "open": "no difference between the tuned and the base model can be shown",
    }[outcome(difference)]
    return (
        f"On {count:,} held-out {questions} {finding}: {METRIC.upper()} went from {results['base'][METRIC]:.3f} "
        f"to {results['tuned'][METRIC]:.3f}, {signed(difference['mean'])} ({_evidence(difference)})"
        f"{_bm25_ahead(results)}."
    )


def too_small(results: Mapping[str, Any]) -> str | None:
    """A warning if the test set is too small to tell much; None if it is large enough or that is not known.

    Args:
        results: the content of `results.json`; read are "test" and "delta", if there.
    """
    groups = results.get("test", {}).get("groups")
    detectable = results.get("delta", {}).get(METRIC, {}).get("detectable", 0.0)
    if groups is None or (groups >= FEWEST_GROUPS and detectable <= LARGEST_DETECTABLE):
        return None
    return f"the test set is small: {groups:,} independent groups of questions."


def outcome(difference: Mapping[str, Any]) -> Outcome:
    """Whether tuned minus base is above or below 0, as far as the interval and the p-value tell.

    Args:
        difference: an entry of "delta": mean, ci95, p_value.
    """
    low, high = difference["ci95"]
    # Rounded as shown, so that the words and the numbers beside them never disagree.
    if difference["p_value"] > SIGNIFICANT or round(low, 4) <= 0 <= round(high, 4):
        return "open"
    return "better" if low > 0 else "worse"


def signed(value: float) -> str:
    """A difference with its sign and three decimals; four where three would show 0."""
    if round(value, 4) == 0:
        return "0.000"
    return f"{value:+.3f}" if round(value, 3) else f"{value:+.4f}"


def _evidence(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    interval = f"95 % interval {signed(low)} to {signed(high)}"
    excludes_zero = not round(low, 4) <= 0 <= round(high, 4)
    if excludes_zero and outcome(difference) == "open":
        return f"{interval}, but p = {difference['p_value']:.2f}"
    return interval


def _bm25_ahead(results: Mapping[str, Any]) -> str:
    """A clause for the sentence, empty unless BM25 shows a higher number than the tuned model."""
    if "bm25" not in results:
        return ""
    base, tuned, bm25 = (round(results[key][METRIC], 3) for key in ("base", "tuned", "bm25"))
    if bm25 <= tuned:
        return ""
    return f"; plain word search (BM25) scores higher than {'both' if bm25 > base else 'the tuned model'}: {bm25:.3f}"
