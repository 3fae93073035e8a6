"""What the results say about shipping the model: the sentence at the top, and one finding a question asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from embedtune.report.goals import goal
from embedtune.report.systems import further_models, lead, reference, reference_phrase, short_model_name
from embedtune.report.text import counted, metric_name, shortened
from embedtune.report.verdict import (
    METRIC,
    Outcome,
    kept_nothing,
    outcome,
    signed,
    too_small,
    verdict,
    why_nothing_kept,
)

Answer = Literal["yes", "no", "open", "higher", "lower", "none", "loss"]

_ANSWERS: dict[Outcome, Answer] = {"better": "yes", "worse": "no", "open": "open"}
_BREAKDOWNS = {
    "query_length": "questions of {}",
    "passage_length": "passages of {}",
    "overlap": "questions with {}",
}
"""What a breakdown is by, to its bins in words."""


@dataclass(frozen=True)
class Finding:
    """One question that somebody who decides would ask.

    "yes" speaks for the model, "no" and "loss" against it, "open" and "none" (no loss) say that nothing can be shown;
    "higher" and "lower" are for numbers that were compared without an interval.
    """

    question: str
    answer: Answer
    evidence: str
    decides: bool = True
    """Whether the answer can be a reason against shipping the model by itself."""


def headline(results: Mapping[str, Any]) -> str:
    """The report's first sentence: the verdict of a training run, or what an evaluation came to.

    Args:
        results: the content of `results.json`, or what `embedtune eval` writes.
    """
    if lead(results) == "tuned":
        return verdict(results)
    of = goal(results)
    tested, value = of.counted(of.number(results)), results["model"][of.metric]
    model = shortened(short_model_name(results["base_model"]), 60)
    if reference(results) is None:
        bm25 = f"; plain word search (BM25) reaches {results['bm25'][METRIC]:.3f}" if results.get("bm25") else ""
        return f"On {tested} {model} reaches {of.measured} of {value:.3f}{bm25}."
    difference, other = results["delta"][of.metric], shortened(reference_phrase(results), 60)
    finding = {
        "better": f"{model} {of.succeeds} better than {other}",
        "worse": f"{model} {of.succeeds} worse than {other}",
        "open": f"no difference between {model} and {other} can be shown",
    }[outcome(difference)]
    return (
        f"On {tested} {finding}: {of.name} is {value:.3f} against {results['against'][of.metric]:.3f}, "
        f"{_evidence(difference, '95 % interval ')}."
    )


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """Every question that these results can answer, in the order in which they matter."""
    return [
        *_against_reference(results),
        *_against_bm25(results),
        *_against_hybrid(results),
        *_against_further(results),
        *_forgetting(results),
        *_breakdown(results),
    ]


def recommendation(results: Mapping[str, Any], found: Sequence[Finding]) -> str:
    """What follows from the findings, in one sentence; empty where nothing was trained and so nothing is decided."""
    if lead(results) != "tuned":
        return ""
    of = goal(results)
    gain = outcome(results["delta"][of.metric])
    if kept_nothing(results) and gain != "better":
        return f"No: nothing of the training was kept, as {why_nothing_kept(results)}."
    if gain == "worse":
        return f"No: it {of.loses} than the base model."
    if gain == "open":
        return "Not on this evidence: no gain over the base model can be shown."
    bm25 = results.get("delta_to", {}).get("bm25", {}).get(METRIC)
    if bm25 is not None and outcome(bm25) == "worse":
        return "Not alone: plain word search (BM25) does better."
    if any(finding.answer in ("no", "lower", "loss") and finding.decides for finding in found):
        return "Yes, if you can live with what speaks against it below."
    if too_small(results) is not None:
        return "Probably: the gain shows, but the test set is small."
    return "Yes, as far as this test set tells."


def difference_outcome(difference: Mapping[str, Any]) -> Outcome:
    """`outcome`, also of a difference that has an interval only."""
    return outcome({"p_value": 0.0, **difference})


def bin_name(by: str, label: str) -> str:
    """A bin of the breakdown within a sentence."""
    return _BREAKDOWNS.get(by, "{}").format(label)


def _against_reference(results: Mapping[str, Any]) -> Iterator[Finding]:
    if reference(results) is not None:
        of = goal(results)
        difference = results["delta"][of.metric]
        yield Finding(
            f"Better than {shortened(reference_phrase(results), 40)}?",
            _ANSWERS[outcome(difference)],
            f"{of.name} {_evidence(difference)}",
        )


def _against_bm25(results: Mapping[str, Any]) -> Iterator[Finding]:
    if not results.get("bm25"):
        return
    question = "Better than plain word search (BM25)?"
    difference = results.get("delta_to", {}).get("bm25", {}).get(METRIC)
    if difference is not None:
        yield Finding(question, _ANSWERS[outcome(difference)], f"{METRIC.upper()} {_evidence(difference)}")
        return
    value, bm25 = (round(results[key][METRIC], 3) for key in (lead(results), "bm25"))
    answer: Answer = "higher" if value > bm25 else "lower" if value < bm25 else "open"
    yield Finding(question, answer, f"{METRIC.upper()} {value:.3f} against {bm25:.3f}; no interval was computed")


def _against_hybrid(results: Mapping[str, Any]) -> Iterator[Finding]:
    difference = results.get("delta_to", {}).get("hybrid", {}).get(METRIC)
    if difference is None:
        return
    found = outcome(difference)
    value = results.get("hybrid", {}).get(METRIC)
    numbers = f"{METRIC.upper()} {_evidence(difference)}" + ("" if value is None else f"; hybrid {value:.3f}")
    yield Finding(
        "Better alone than fused with word search?",
        _ANSWERS[found],
        {
            "better": f"{numbers}. Word search adds nothing.",
            "worse": f"{numbers}. Ship it as a hybrid with BM25.",
            "open": f"{numbers}. Either will do.",
        }[found],
        decides=False,
    )


def _against_further(results: Mapping[str, Any]) -> Iterator[Finding]:
    of = goal(results)
    for other in further_models(results):
        difference = other.get("delta", {}).get(of.metric)
        if difference is not None:
            name = shortened(short_model_name(other["model"]), 40)
            evidence = f"{of.name} {_evidence(difference)}"
            yield Finding(f"Better than {name}?", _ANSWERS[outcome(difference)], evidence)


def _forgetting(results: Mapping[str, Any]) -> Iterator[Finding]:
    sets = [entry for entry in results.get("forgetting", {}).get("sets") or [] if entry.get("delta")]
    if not sets:
        return
    worse = [entry for entry in sets if difference_outcome(entry["delta"]) == "worse"]
    if worse:
        lost = "; ".join(
            f"{entry['name']} {metric_name(entry['metric'])} {_evidence(entry['delta'])}" for entry in worse
        )
        yield Finding("Loss on general tasks?", "loss", lost)
        return
    largest = min(sets, key=lambda entry: float(entry["delta"]["mean"]))
    yield Finding(
        "Loss on general tasks?",
        "none",
        f"on {counted(len(sets), 'set')}; lowest: {largest['name']} {_evidence(largest['delta'])}",
    )


def _breakdown(results: Mapping[str, Any]) -> Iterator[Finding]:
    bins = [(entry["by"], one) for entry in results.get("breakdown") or [] for one in entry["bins"] if one.get("delta")]
    if not bins or reference(results) is None:
        return
    worse = [(by, one) for by, one in bins if outcome(one["delta"]) == "worse"]
    question = f"Any kind of question worse than with {shortened(reference_phrase(results), 40)}?"
    if not worse:
        yield Finding(question, "none", f"in {len(bins)} groups by length and word overlap")
        return
    named = "; ".join(f"{bin_name(by, one['label'])}: {_evidence(one['delta'])}" for by, one in worse)
    yield Finding(question, "loss", f"{named} ({len(worse)} of {len(bins)} groups)")


def _evidence(difference: Mapping[str, Any], interval: str = "") -> str:
    low, high = difference["ci95"]
    return f"{signed(difference['mean'])} ({interval}{signed(low)} to {signed(high)})"
