"""What a model's user should know against it, and how the numbers on its card came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedtune.report.card.markdown import text
from embedtune.report.card.metadata import dataset_id
from embedtune.report.goals import RETRIEVAL, SIMILARITY, goal
from embedtune.report.verdict import METRIC, kept_nothing, outcome, signed, why_nothing_kept

FEW_QUESTIONS = 50
_GROUPS = {
    "query_length": "questions by length",
    "passage_length": "passages by length",
    "overlap": "word overlap of question and passage",
}


def limits(results: Mapping[str, Any], max_length: int) -> list[str]:
    """Sentences in Markdown; always at least one.

    Args:
        results: the content of `results.json`.
        max_length: tokens that the model reads of a text.
    """
    return [
        *_outcome(results),
        *_word_search(results),
        *_worse_groups(results),
        *_worse_questions(results),
        *_forgetting(results),
        *_data(results, max_length),
    ]


def protocol(results: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """How the numbers were measured, in Markdown; empty if there are none."""
    data = results.get("data", {})
    of = goal(results)
    if "tuned" not in results or of.tested not in data:
        return []
    if of is SIMILARITY:
        return _graded_protocol(results, config)
    passages = f" over {data['corpus_passages']:,} passages" if "corpus_passages" in data else ""
    lines = [f"{data['test_queries']:,} questions{passages}, exact search; the same for every column.", _split(config)]
    dropped = data.get("dropped", {}).get("leaked_pairs")
    if dropped:
        lines.append(f"{dropped:,} training pairs were left out because they share a text with the held-out ones.")
    if near := data.get("near_duplicates"):
        lines.append(
            f"Passages that are nearly the same ({near['passages']:,} of them) count as one when the sets are cut."
        )
    groups = results.get("test", {}).get("groups")
    resampled = f"{groups:,} groups of questions that share a passage" if groups else "questions"
    if "delta" in results:
        lines.append(f"Intervals: Student's t over {resampled}, 95 %. The checkpoint was chosen on other questions.")
    return lines


def _graded_protocol(results: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    data = results["data"]
    lines = [f"{data['test_pairs']:,} pairs: the cosine similarity of each pair's two texts, compared with its grade."]
    given = config.get("data", {}).get("test")
    lines.append(
        f"No training pair shares a text with the test.{' The test pairs are a set of their own.' if given else ''}"
    )
    if dropped := data.get("dropped", {}).get("leaked_pairs"):
        lines.append(f"{dropped:,} training pairs were left out because they share a text with the held-out ones.")
    if groups := results.get("test", {}).get("groups"):
        lines.append(
            f"Intervals: percentile bootstrap over {groups:,} groups of pairs that share a text, 95 %. The checkpoint "
            "was chosen on other pairs."
        )
    return lines


def _split(config: Mapping[str, Any]) -> str:
    """True of every run, whether the sets were given, came with the data or were cut off."""
    apart = "No training pair shares a question or a passage with the test."
    if not (test := config.get("data", {}).get("test")):
        return apart
    source = dataset_id({"train": test})
    return f"{apart} The test questions are a set of their own{f', {text(source)}' if source else ''}."


def _outcome(results: Mapping[str, Any]) -> list[str]:
    of = goal(results)
    difference = results.get("delta", {}).get(of.metric)
    found = []
    if kept_nothing(results):
        found.append(f"Nothing of its training was kept, as {why_nothing_kept(results)}.")
    if difference is not None and outcome(difference) == "worse":
        found.append(f"It is worse than its base model on the held-out {of.item}s: use the base model instead.")
    if difference is not None and outcome(difference) == "open" and not kept_nothing(results):
        smallest = f" It would have shown one of {difference['detectable']:.3f}." if "detectable" in difference else ""
        found.append(f"The test does not show that it is better than its base model.{smallest}")
    tested = results.get("data", {}).get(of.tested)
    if tested is not None and tested < FEW_QUESTIONS:
        found.append(f"Only {tested:,} {of.item}s were tested: the intervals are rough.")
    return found


def _word_search(results: Mapping[str, Any]) -> list[str]:
    tuned = results.get("tuned", {}).get(METRIC)
    found = []
    bm25, hybrid = (results.get(key, {}).get(METRIC) for key in ("bm25", "hybrid"))
    if tuned is not None and bm25 is not None and round(bm25, 3) > round(tuned, 3):
        found.append(
            f"Plain word search (BM25) ranks higher on these questions: {METRIC.upper()} {bm25:.3f} against "
            f"{tuned:.3f}."
        )
    if tuned is not None and hybrid is not None and round(hybrid, 3) > round(tuned, 3):
        found.append(f"Joined with BM25 it ranks higher than alone: {METRIC.upper()} {hybrid:.3f} against {tuned:.3f}.")
    return found


def _worse_groups(results: Mapping[str, Any]) -> list[str]:
    return [
        f"Worse than the base model on {text(group['label'])} ({text(_GROUPS.get(part['by'], part['by']))}; "
        f"{group['queries']:,} questions): {_change(group['delta'])}."
        for part in results.get("breakdown", [])
        for group in part["bins"]
        if group.get("delta") and group["delta"]["ci95"][1] < 0
    ]


def _worse_questions(results: Mapping[str, Any]) -> list[str]:
    queries = results.get("queries", {})
    if not queries.get("worse"):
        return []
    total = queries["worse"] + queries.get("better", 0) + queries.get("equal", 0)
    return [
        f"For {queries['worse']:,} of {total:,} questions it ranks worse than the base model, for "
        f"{queries.get('better', 0):,} better."
    ]


def _forgetting(results: Mapping[str, Any]) -> list[str]:
    forgetting = results.get("forgetting", {})
    sets = forgetting.get("sets", [])
    worse = [
        f"Worse at what it was not trained on: {text(part['name'])} ({text(part['kind'])}, {part['items']:,} items), "
        f"{text(part['metric'])} {part['base']:.3f} before, {part['tuned']:.3f} after, {_change(part['delta'])}."
        for part in sets
        if part["delta"]["ci95"][1] < 0
    ]
    if sets:
        return worse or [f"On {len(sets)} other kinds of texts, which it was not trained on, no loss could be shown."]
    texts = "questions and passages" if goal(results) is RETRIEVAL else "texts"
    return [
        f"It was trained and tested on one kind of {texts}. How it does on others, in other languages or "
        "for other tasks was not measured; fine-tuning can make a model worse there."
    ]


def _data(results: Mapping[str, Any], max_length: int) -> list[str]:
    found, texts = [], "passages" if goal(results) is RETRIEVAL else "texts"
    if truncated := results.get("data", {}).get("truncated_passages"):
        found.append(
            f"{truncated:,} {texts} of the data are longer than {max_length:,} tokens; their ends were not read."
        )
    if suspects := results.get("suspects", {}).get("count"):
        found.append(
            f"For {suspects:,} test questions the passage ranked first may be an answer that nobody labelled; it "
            "counts as wrong in all numbers here."
        )
    return found


def _change(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return text(f"{signed(difference['mean'])} (95 % interval {signed(low)} to {signed(high)})")
