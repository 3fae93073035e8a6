"""The ways of ranking beside each other: table, charts, further models, and the kinds of questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from embedtune.report import text
from embedtune.report.charts import Bar, Interval, Series, bar_chart, interval_chart, recall_chart
from embedtune.report.findings import difference_outcome
from embedtune.report.goals import RETRIEVAL, goal
from embedtune.report.systems import NAMES, further_models, lead, present_systems, reference, short_model_name
from embedtune.report.verdict import METRIC

FAMILIES = {
    "ndcg": "1 when every right passage is at the top of the first K, less the further down it is",
    "mrr": "1 divided by the place of the first right passage, 0 if it is not among the first K",
    "map": "mean precision at the places of the right passages among the first K",
    "accuracy": "share of the questions with a right passage among the first K",
    "recall": "share of a question's right passages that are among the first K",
    "precision": "share of the first K that are right passages",
}
CORRELATIONS = {
    "spearman": "correlation of the order of the pairs by the model's cosine similarity with their order by grade",
    "pearson": "correlation of the cosine similarities themselves with the grades",
}
"""What the metrics of graded pairs mean; both are 1 where the model agrees with all grades."""
"""What the name of a metric starts with to what it means, in the order of the table."""
SHOWN_METRICS = ("ndcg@10", "mrr@10", "map@100", "accuracy@1", "recall@10", "recall@100", *CORRELATIONS)
"""Rows of the table that are open to view."""
SHOWN_INTERVALS = ("ndcg@10", "mrr@10", "map@100", "accuracy@1", "recall@10", *CORRELATIONS)
SHOWN_FURTHER = ("ndcg@10", "accuracy@1", "recall@10")
BREAKDOWNS = {
    "query_length": "By length of the question",
    "passage_length": "By length of the right passage",
    "overlap": "By the question's words that are in the passage",
}
IN_CAPTION = " of the question's words in the passage"
"""End of a bin's label that the caption of its chart says already."""


@dataclass(frozen=True)
class Evidence:
    """A difference as it is written."""

    difference: str
    interval: str
    p_value: str
    outcome: str


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, a value a column, and the difference if there is one."""

    name: str
    values: list[str]
    evidence: Evidence | None
    starts_group: bool = False
    judged: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under the names of their columns."""

    first: str
    columns: list[str]
    rows: list[Row]
    difference: str = "Difference"
    stacked: bool = False
    """Whether a name takes a line of its own where there is little room."""

    @property
    def has_evidence(self) -> bool:
        return any(row.evidence is not None for row in self.rows)

    @property
    def has_p_values(self) -> bool:
        return any(row.evidence is not None and row.evidence.p_value for row in self.rows)


@dataclass(frozen=True)
class Breakdown:
    """The questions of one division: chart and numbers."""

    caption: str
    chart: Markup | None
    table: Table


def evidence(difference: Mapping[str, Any] | None) -> Evidence | None:
    """A difference in words; without p-value where none was computed."""
    if difference is None:
        return None
    p_value = difference.get("p_value")
    return Evidence(
        difference=text.difference(difference["mean"]),
        interval=text.interval(difference["ci95"]),
        p_value="" if p_value is None else text.p_value(p_value),
        outcome=difference_outcome(difference),
    )


def metric_tables(results: Mapping[str, Any]) -> tuple[Table, Table | None]:
    """The metrics that matter most, and the others."""
    metrics = sorted(results[lead(results)], key=_place)
    shown = [metric for metric in metrics if metric in SHOWN_METRICS]
    others = [metric for metric in metrics if metric not in SHOWN_METRICS]
    return _metric_table(results, shown), _metric_table(results, others) if others else None


def further_table(results: Mapping[str, Any]) -> Table | None:
    """The models that were compared besides, a row each; the difference is from each of them."""
    further, of = further_models(results), goal(results)
    if not further:
        return None
    shown = SHOWN_FURTHER if of is RETRIEVAL else of.further
    rows = [
        Row(
            name=text.shortened(short_model_name(other["model"]), 48),
            values=[_value(other["metrics"], metric) for metric in shown],
            evidence=evidence(other.get("delta", {}).get(of.metric)),
        )
        for other in further
    ]
    columns = [text.breakable(text.metric_name(metric)) for metric in shown]
    return Table("Model", columns, rows, f"{NAMES[lead(results)]} minus it", stacked=True)


def result_charts(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(caption, chart): all systems by the metric, and the differences."""
    of = goal(results)
    bars = [Bar(NAMES[key], results[key][of.metric], key) for key in present_systems(results)]
    bars += [
        Bar(text.shortened(short_model_name(other["model"]), 36), other["metrics"][of.metric], "further")
        for other in further_models(results)
    ]
    caption = f"{of.name} on the test {of.item}s"
    return [(caption, bar_chart("bars", caption, bars)), *_intervals(results)]


def breakdowns(results: Mapping[str, Any]) -> list[Breakdown]:
    """Each division of the questions; its bins' differences, on one scale for all, and their numbers."""
    entries = [entry for entry in results.get("breakdown") or [] if entry["bins"]]
    deltas = [one["delta"]["ci95"] for entry in entries for one in entry["bins"] if one.get("delta")]
    extent = (min(low for low, _ in deltas), max(high for _, high in deltas)) if deltas else None
    return [_breakdown(entry, number, extent, results) for number, entry in enumerate(entries)]


def _metric_table(results: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    systems, delta = present_systems(results), results.get("delta") or {}
    rows: list[Row] = []
    previous = None
    for metric in metrics:
        family = metric.partition("@")[0]
        rows.append(
            Row(
                name=text.metric_name(metric),
                values=[_value(results[key], metric) for key in systems],
                evidence=evidence(delta.get(metric)),
                # NDCG, MRR and MAP have one row each and stand together.
                starts_group=previous not in (None, family) and family not in ("ndcg", "mrr", "map", *CORRELATIONS),
                judged=metric == goal(results).metric,
            )
        )
        previous = family
    return Table("Metric", [NAMES[key] for key in systems], rows)


def _intervals(results: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    compared = reference(results)
    if compared is None:
        return
    delta = results["delta"]
    intervals = [
        Interval(text.metric_name(metric), delta[metric]["mean"], *delta[metric]["ci95"])
        for metric in SHOWN_INTERVALS
        if metric in delta
    ]
    what = f"{NAMES[lead(results)]} minus {NAMES[compared].lower()}"
    if compared == "against":
        what = "The model minus the one it is compared with"
    caption = f"{what}, with 95\N{NO-BREAK SPACE}% intervals"
    yield caption, interval_chart("intervals", caption, intervals)


def recall(results: Mapping[str, Any]) -> tuple[str, Markup] | None:
    """(caption, chart) of recall by depth."""
    curve = results.get("recall_curve") or {}
    systems = curve.get("systems") or {}
    # The model that the page is about comes first and is drawn on top.
    first = lead(results)
    keys = sorted((key for key in systems if key in NAMES), key=lambda key: key != first)
    if not keys:
        return None
    caption = "Recall: share of the right passages among the first k"
    series = [Series(NAMES[key], key, list(zip(curve["k"], systems[key], strict=False))) for key in keys]
    return caption, recall_chart("recall", caption, series)


def _breakdown(
    entry: Mapping[str, Any], number: int, extent: tuple[float, float] | None, results: Mapping[str, Any]
) -> Breakdown:
    caption = BREAKDOWNS.get(entry["by"], f"By {entry['by'].replace('_', ' ')}")
    with_delta = [one for one in entry["bins"] if one.get("delta")]
    intervals = [
        Interval(
            text.cut(one["label"].removesuffix(IN_CAPTION), 24),
            mean=one["delta"]["mean"],
            low=one["delta"]["ci95"][0],
            high=one["delta"]["ci95"][1],
            style=difference_outcome(one["delta"]),
        )
        for one in with_delta
    ]
    chart = None
    if intervals:
        chart = interval_chart(f"breakdown-{number}", caption, intervals, label_width=160, extent=extent)
    systems = [key for key in present_systems(results) if any(key in one["systems"] for one in entry["bins"])]
    rows = [
        Row(
            name=one["label"],
            values=[_value(one["systems"], key) for key in systems],
            evidence=evidence(one.get("delta")),
            note=text.counted(one["queries"], "question"),
        )
        for one in entry["bins"]
    ]
    return Breakdown(caption, chart, Table(METRIC.upper(), [NAMES[key] for key in systems], rows, stacked=True))


def _value(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return "–" if value is None else f"{value:.3f}"


def _place(metric: str) -> int:
    families, family = list(FAMILIES), metric.partition("@")[0]
    return families.index(family) if family in families else len(families)
