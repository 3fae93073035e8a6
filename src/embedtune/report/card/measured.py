"""What was measured, as tables for the card and the sentences below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedtune.report.card.markdown import table, text
from embedtune.report.card.metadata import shown_name
from embedtune.report.goals import SIMILARITY, goal
from embedtune.report.text import metric_name
from embedtune.report.verdict import METRIC, signed

SYSTEMS = {"base": "Base", "tuned": "Tuned", "bm25": "BM25", "hybrid": "Tuned + BM25"}
SHOWN_METRICS = (
    *("ndcg@10", "mrr@10", "map@100", "accuracy@1", "accuracy@10", "recall@10", "recall@100"),
    *SIMILARITY.shown,
)


def results_table(results: Mapping[str, Any]) -> str:
    """Each metric of the base, the tuned model and what stands beside them."""
    present = [key for key in SYSTEMS if key in results]
    delta = results.get("delta", {})
    rows = [
        (
            metric_name(metric),
            *(_number(results[key], metric) for key in present),
            *([_difference(delta[metric])] if metric in delta else [""] if delta else []),
        )
        for metric in SHOWN_METRICS
        if any(metric in results[key] for key in present)
    ]
    difference = ["Tuned minus base (95 % interval)"] if delta else []
    return table(["Metric", *(SYSTEMS[key] for key in present), *difference], rows) if rows else ""


def results_notes(results: Mapping[str, Any]) -> list[str]:
    """What the systems of that table are, and how the model compares with word search."""
    notes = []
    if "bm25" in results:
        notes.append("BM25 is plain word search.")
    if "hybrid" in results:
        notes.append("Tuned + BM25 joins the two rankings by reciprocal rank fusion.")
    names = {"bm25": "BM25", "hybrid": "the two together"}
    for key, name in names.items():
        if difference := results.get("delta_to", {}).get(key, {}).get(METRIC):
            notes.append(f"{METRIC.upper()}, tuned minus {name}: {text(_difference(difference))}.")
    return notes


def further_table(results: Mapping[str, Any]) -> str:
    """The metric that decides, of other models."""
    of = goal(results)
    rows = [
        (
            shown_name(str(other["model"])) or "a local model",
            _number(other["metrics"], of.metric),
            _difference(other["delta"][of.metric]) if of.metric in other.get("delta", {}) else "",
        )
        for other in results.get("further", [])
    ]
    return table(("Model", of.name, "Tuned minus this one (95 % interval)"), rows) if rows else ""


def sizes_table(results: Mapping[str, Any]) -> str:
    """What shorter and coarser vectors reach."""
    rows = [
        (
            f"{row['dimensions']:,}",
            row.get("precision", "float32"),
            f"{row['bytes']:,}" if "bytes" in row else "",
            _number(row, METRIC),
            _number(row, "recall@100"),
        )
        for row in results.get("sizes", [])
    ]
    return table(("Dimensions", "Precision", "Bytes a vector", METRIC.upper(), "Recall@100"), rows) if rows else ""


def _difference(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{signed(difference['mean'])} ({signed(low)} to {signed(high)})"


def _number(values: Mapping[str, Any], key: str) -> str:
    return f"{values[key]:.3f}" if values.get(key) is not None else ""
