"""What a run found out, in one sentence that claims no more than the interval allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from embedtune.report.goals import RETRIEVAL, goal

METRIC = RETRIEVAL.metric
"""The metric that a run on questions and passages is judged by."""
SIGNIFICANT = 0.05
"""A p-value above it leaves the difference open, whatever the interval: that of a single question has no width."""

FINE_ENOUGH = 0.05
"""A test set that shows differences of this size in the metric is large enough: people who search notice them."""
FEW_GROUPS = 50
"""Fewer independent groups of questions are too few whatever they show: they stand for little else than themselves."""

Outcome = Literal["better", "worse", "open"]


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence, in ASCII for any terminal: better, worse or open, the numbers, and word search where it is ahead.

    An open difference comes with what the test set could have shown. A run that kept nothing of its training says so.

    Args:
        results: the content of `results.json`; read are "task", "data", "base", "tuned", "delta" and, if there,
            "train", "bm25", "hybrid" and "delta_to".
    """
    of = goal(results)
    count, difference = of.number(results), results["delta"][of.metric]
    if kept_nothing(results):
        return _nothing_kept(results)
    finding = {
        "better": f"the tuned model {of.succeeds} better than the base model",
        "worse": f"the tuned model {of.succeeds} worse than the base model",
        "open": "no difference between the tuned and the base model can be shown",
    }[outcome(difference)]
    items = of.counted(count)
    return (
        f"On {items.replace(' ', ' held-out ')} {finding}: {of.name} went from {results['base'][of.metric]:.3f} "
        f"to {results['tuned'][of.metric]:.3f}, {signed(difference['mean'])} ({_evidence(difference)})"
        f"{_could_have_shown(items, difference)}{_bm25_ahead(results)}{_hybrid_ahead(results)}."
    )


def kept_nothing(results: Mapping[str, Any]) -> bool:
    """Whether no step did better on the dev set than the model that the training began with, or not by enough.

    The base model as published was saved then, or with the adapter that was to be trained further.
    """
    return bool(results.get("train", {}).get("best_step") == 0) or _declined(results)


def why_nothing_kept(results: Mapping[str, Any]) -> str:
    """Why `kept_nothing`, to be said behind "as"."""
    return "its gain on the dev set is within noise" if _declined(results) else "no step did better on the dev set"


def _declined(results: Mapping[str, Any]) -> bool:
    return bool(results.get("blend", {}).get("declined"))


def too_small(results: Mapping[str, Any]) -> str | None:
    """A warning, in ASCII, if the test set is too small to tell much; None if it is large enough or unknown.

    Too small are fewer than `FEW_GROUPS` groups of questions or pairs, whatever they show, and a test set that leaves
    the difference open although it could only have shown one larger than `FINE_ENOUGH`.

    Args:
        results: the content of `results.json`; read are "task", "data", "test" and "delta", if they are there.
    """
    of = goal(results)
    count, groups = of.number(results), results.get("test", {}).get("groups")
    difference = results.get("delta", {}).get(of.metric, {})
    detectable = difference.get("detectable")
    unclear = detectable is not None and detectable > FINE_ENOUGH and outcome(difference) == "open"
    if groups is None or (groups >= FEW_GROUPS and not unclear):
        return None
    shared = "" if groups == count else f" in {groups:,} groups that share no {of.shares}"
    small = f"the test set is small: {of.counted(count)}{shared}"
    if detectable is None or detectable <= FINE_ENOUGH or groups == 1:
        return f"{small}, which may not stand for others; {FEW_GROUPS} or more would."
    # The standard error falls with the root of the number of groups.
    needed = math.ceil(groups * (detectable / FINE_ENOUGH) ** 2)
    return (
        f"{small}. It shows {of.name} differences from about {detectable:.2f} on; "
        f"for {FINE_ENOUGH} it would take about {_rounded(needed):,} {f'{of.item}s' if groups == count else 'groups'}."
    )


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


def _nothing_kept(results: Mapping[str, Any]) -> str:
    of = goal(results)
    items, difference = of.counted(of.number(results)).replace(" ", " held-out "), results["delta"][of.metric]
    before, after = results["base"][of.metric], results["tuned"][of.metric]
    if _declined(results):
        gain = results["blend"]["gain"]
        return (
            f"What training gained on the dev set is within noise ({of.name} {signed(gain['mean'])}, standard error "
            f"{gain['error']:.3f}), so the base model is what was saved: {of.name} on {items} is {after:.3f}, as it was"
            f"{_bm25_ahead(results)}{_hybrid_ahead(results)}."
        )
    if not any(round(value, 4) for value in (difference["mean"], *difference["ci95"])):
        found = "the base model, so the base model is what was saved"
        measured = f"{of.name} on {items} is {after:.3f}, as it was"
    else:
        found = "what the training began with, so nothing of it was kept"
        measured = (
            f"{of.name} on {items} is {after:.3f}, the base model's {before:.3f}, {signed(difference['mean'])} "
            f"({_evidence(difference)})"
        )
    ahead = f"{_bm25_ahead(results)}{_hybrid_ahead(results)}"
    return f"On the dev set no training step did better than {found}: {measured}{ahead}."


def _rounded(count: int) -> int:
    """Two digits are all that an estimate is good for."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / unit) * unit


def _could_have_shown(items: str, difference: Mapping[str, Any]) -> str:
    """A clause on the size that a difference must have to be shown, empty unless it is open and that is known."""
    detectable = difference.get("detectable")
    if detectable is None or outcome(difference) != "open" or round(detectable, 3) == 0:
        return ""
    return f"; {items} like these could only have shown a difference of about {detectable:.3f} or more"


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


def _hybrid_ahead(results: Mapping[str, Any]) -> str:
    """A clause for the sentence, empty unless BM25 shown to add to the tuned model."""
    difference = results.get("delta_to", {}).get("hybrid", {}).get(METRIC)
    if difference is None or outcome(difference) != "worse":
        return ""
    return f"; together with word search it reaches {results['hybrid'][METRIC]:.3f}"
