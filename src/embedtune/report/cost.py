"""What the gain cost elsewhere: general tasks, neighbours, the blend with the base model, and smaller vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from embedtune.report import text
from embedtune.report.charts import BlendPoint, Series, blend_chart, size_chart
from embedtune.report.comparison import Row, Table, evidence
from embedtune.report.systems import NAMES, lead, reference
from embedtune.report.verdict import METRIC

KEPT = 0.95
"""Share of the full vectors' quality that smaller ones have to keep to be named."""


@dataclass(frozen=True)
class Cost:
    """Parts of the section; None or empty where nothing was measured."""

    forgetting: Table | None
    neighbours: str
    blend: tuple[str, Markup] | None
    blend_words: str


@dataclass(frozen=True)
class Sizes:
    chart: tuple[str, Markup]
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    words: str


def cost(results: Mapping[str, Any]) -> Cost | None:
    """Forgetting and the blend; None if neither was measured."""
    forgetting, blend = results.get("forgetting") or {}, results.get("blend") or {}
    found = Cost(
        forgetting=_forgetting_table(forgetting.get("sets") or [], results),
        neighbours=_neighbours(forgetting.get("neighbours") or {}),
        blend=_blend_chart(blend),
        blend_words=_blend_words(blend),
    )
    return found if found.forgetting or found.neighbours or found.blend else None


def sizes(results: Mapping[str, Any]) -> Sizes | None:
    """What shorter and coarser vectors keep of the quality; None if that was not measured."""
    entries = sorted(results.get("sizes") or [], key=lambda entry: -float(entry["bytes"]))
    if not entries:
        return None
    full = entries[0][METRIC]
    rows = [
        (
            f"{entry['dimensions']:,} × {entry['precision']}",
            [
                _megabytes(entry["bytes"] * 1_000_000),
                f"{entry[METRIC]:.3f}",
                "–" if not full else f"{100 * entry[METRIC] / full:.1f}\N{NO-BREAK SPACE}%",
                "–" if entry.get("recall@100") is None else f"{entry['recall@100']:.3f}",
            ],
        )
        for entry in entries
    ]
    columns = ["A million", METRIC.upper(), "of full", text.breakable("Recall@100")]
    return Sizes(_size_chart(entries), columns, rows, _smallest_that_keeps(entries))


def _forgetting_table(sets: list[Mapping[str, Any]], results: Mapping[str, Any]) -> Table | None:
    if not sets:
        return None
    before, after = reference(results) or "base", lead(results)
    rows = [
        Row(
            name=entry["name"],
            values=["–" if entry.get(key) is None else f"{entry[key]:.3f}" for key in (before, after)],
            evidence=evidence(entry.get("delta")),
            note=f"{text.metric_name(entry['metric'])}, {text.count(entry['items'])} {_items(entry)}",
        )
        for entry in sets
    ]
    return Table("Test of general use", [NAMES[before], NAMES[after]], rows, stacked=True)


def _items(entry: Mapping[str, Any]) -> str:
    return "pairs of sentences" if entry.get("kind") == "similarity" else "questions"


def _neighbours(entry: Mapping[str, Any]) -> str:
    if entry.get("overlap") is None:
        return ""
    nearest = entry["k"]
    return (
        f"After re-embedding, on average {entry['overlap'] * nearest:.1f} of a passage's {nearest} nearest neighbours "
        f"are still the same (measured on {text.counted(entry['passages'], 'passage')})."
    )


def _blend_points(blend: Mapping[str, Any]) -> list[BlendPoint]:
    points = [
        BlendPoint(point["weight"], point["dev"], point["forgetting"])
        for point in blend.get("points") or []
        if point.get("dev") is not None and point.get("forgetting") is not None
    ]
    return sorted(points, key=lambda point: point.weight)


def _blend_chart(blend: Mapping[str, Any]) -> tuple[str, Markup] | None:
    points = _blend_points(blend)
    if not points:
        return None
    caption = f"Up: {text.metric_name(blend.get('metric', METRIC))} on the dev set. Right: mean score on general tasks"
    chart = blend_chart("blend", caption, points, recommended=blend.get("recommended"), used=blend.get("used"))
    return caption, chart


def _blend_words(blend: Mapping[str, Any]) -> str:
    recommended, used = blend.get("recommended"), blend.get("used")
    if not _blend_points(blend) or used is None:
        return ""
    saved = f"The saved model has {_share(used)} of the fine-tuning"
    if recommended is None:
        return f"{saved}."
    if recommended == used:
        return f"{saved}, as recommended."
    return f"{saved}; {_share(recommended)} is recommended (--blend auto)."


def _share(weight: float) -> str:
    return "all" if weight == 1 else "none" if weight == 0 else f"{100 * weight:g}\N{NO-BREAK SPACE}%"


def _size_chart(entries: list[Mapping[str, Any]]) -> tuple[str, Markup]:
    precisions = list(dict.fromkeys(entry["precision"] for entry in entries))
    series = [
        Series(
            precision,
            f"size-{number % 3}",
            sorted((entry["bytes"], entry[METRIC]) for entry in entries if entry["precision"] == precision),
        )
        for number, precision in enumerate(precisions)
    ]
    caption = f"{METRIC.upper()} by bytes a vector"
    return caption, size_chart("sizes", caption, series)


def _smallest_that_keeps(entries: list[Mapping[str, Any]]) -> str:
    """The cheapest of the sizes that loses little, if it is not the full one."""
    full = entries[0]
    kept = [entry for entry in entries if entry[METRIC] >= KEPT * full[METRIC]]
    smallest = min(kept, key=lambda entry: float(entry["bytes"]))
    if not full[METRIC]:
        return f"The full vectors' {METRIC.upper()} is 0, so there is nothing to keep."
    if smallest["bytes"] >= full["bytes"]:
        return f"No smaller size keeps {100 * KEPT:.0f}\N{NO-BREAK SPACE}% of the full vectors' {METRIC.upper()}."
    quality, storage = (100 * smallest[key] / full[key] for key in (METRIC, "bytes"))
    return (
        f"{smallest['dimensions']:,} × {smallest['precision']} keeps {quality:.1f} % of the full vectors' "
        f"{METRIC.upper()} in {storage:.1f} % of the storage: the smallest that keeps at least {100 * KEPT:.0f} %."
    ).replace(" %", "\N{NO-BREAK SPACE}%")


def _megabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
