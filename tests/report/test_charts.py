"""The charts: well-formed, with a text alternative, whatever the numbers."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from embedtune.report.charts import (
    MOST_POINTS,
    Bar,
    BlendPoint,
    Interval,
    Series,
    bar_chart,
    blend_chart,
    dev_chart,
    interval_chart,
    loss_chart,
    recall_chart,
    size_chart,
)
from embedtune.report.charts.svg import spread

HOSTILE = "<b>&\"'"


def title_and_description(chart: Markup) -> tuple[str, str]:
    """Of a chart, which has to be well-formed and to name both as its text alternative."""
    svg = ElementTree.fromstring(chart)
    title, description = svg.find("title"), svg.find("desc")
    assert title is not None
    assert description is not None
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text
    assert description.text
    return title.text, description.text


def places(chart: Markup) -> list[tuple[float, float]]:
    """The points of the chart's last line."""
    line = ElementTree.fromstring(chart).findall("polyline")[-1]
    pairs = (point.split(",") for point in line.get("points", "").split())
    return [(float(x), float(y)) for x, y in pairs]


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart("bars", "NDCG@10", [Bar("Base", 0.25, "base"), Bar("Tuned", 0.75, "tuned")])
    assert title_and_description(chart) == ("NDCG@10", "Base 0.250, Tuned 0.750.")
    widths = [float(r.get("width", "")) for r in ElementTree.fromstring(chart).findall("rect[@class!='track']")]
    assert widths[1] == pytest.approx(3 * widths[0])


def test_labels_are_escaped() -> None:
    chart = bar_chart("bars", HOSTILE, [Bar(HOSTILE, 0.5, "base")])
    assert HOSTILE not in chart
    assert title_and_description(chart) == (HOSTILE, f"{HOSTILE} 0.500.")


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.4), (-0.4, -0.2), (-0.1, 0.1), (0.0, 0.0), (-1.0, 1.0)])
def test_intervals_have_0_in_sight(low: float, high: float) -> None:
    chart = interval_chart("i", "Differences", [Interval("NDCG@10", (low + high) / 2, low, high)])
    svg = ElementTree.fromstring(chart)
    assert svg.find("line[@class='zero']") is not None
    assert all(0 <= float(line.get(x, "")) <= 360 for line in svg.findall("line") for x in ("x1", "x2"))
    assert f"{low:+.3f} to {high:+.3f}" in title_and_description(chart)[1]


def test_a_loss_that_falls_is_drawn_falling() -> None:
    drawn = places(loss_chart("loss", "Loss", [1 / step for step in range(1, 101)]))
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)


def test_a_long_curve_stays_small() -> None:
    drawn = places(loss_chart("loss", "Loss", [0.5] * 100_000))
    assert len(drawn) <= MOST_POINTS


@pytest.mark.parametrize("losses", [[0.7], [0.0], [0.0, 0.0], [1e-9, 3e4]])
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    title_and_description(loss_chart("loss", "Loss", losses))


def test_the_kept_checkpoint_is_marked() -> None:
    chart = dev_chart("dev", "Dev", [(0, 0.5), (10, 0.8), (20, 0.7)], steps=20, kept=[10])
    kept = ElementTree.fromstring(chart).find("circle[@class='kept']")
    assert kept is not None
    assert float(kept.get("cx", "")) == places(chart)[1][0]
    assert "The model of step 10 was kept." in title_and_description(chart)[1]


def test_each_training_has_its_own_curve_from_where_all_began() -> None:
    points = [(0, 0.5), (10, 0.8), (20, 0.7), (30, 0.6), (40, 0.9)]
    chart = dev_chart("dev", "Dev", points, steps=40, kept=[10, 40], starts=[0, 20])
    svg = ElementTree.fromstring(chart)
    curves = [
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in svg.findall("polyline")
    ]
    assert [len(curve) for curve in curves] == [3, 3]
    assert curves[0][0][1] == curves[1][0][1], "both at the value before the first step"
    assert curves[0][2][0] == curves[1][0][0], "one begins at the step where the other ended"
    assert len(svg.findall("circle[@class='kept']")) == 2
    assert "The mean of the models of steps 10, 40 was kept." in title_and_description(chart)[1]


@pytest.mark.parametrize("points", [[(0, 0.0)], [(0, 1.0), (1, 1.0)], [(0, 0.61234), (1, 0.61235)]])
def test_any_evaluations_can_be_drawn(points: list[tuple[float, float]]) -> None:
    title_and_description(dev_chart("dev", "Dev", points, steps=1, kept=[]))


def test_every_curve_is_named_and_the_names_are_apart() -> None:
    series = [Series(name, name.lower(), [(1, 0.5), (10, 0.8), (100, 1.0)]) for name in ("Tuned", "Base", "BM25")]
    chart = recall_chart("recall", "Recall", series)
    names = [text for text in ElementTree.fromstring(chart).findall("text") if "name" in text.get("class", "")]
    places = sorted(float(name.get("y", "")) for name in names)
    assert sorted(name.text or "" for name in names) == ["BM25", "Base", "Tuned"]
    assert min(after - before for before, after in pairwise(places)) >= 15
    assert "Tuned 0.500 at 1, 0.800 at 10, 1.000 at 100" in title_and_description(chart)[1]


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 1.0), (100, 1.0)], [(1, 0.2), (3, 0.4), (7, 0.41)]])
def test_any_curves_can_be_drawn(points: list[tuple[float, float]]) -> None:
    title_and_description(recall_chart("recall", "Recall", [Series(HOSTILE, "tuned", points)]))
    title_and_description(size_chart("sizes", "Sizes", [Series(HOSTILE, "size-0", points)]))


def test_the_blend_marks_what_is_used_and_what_is_recommended() -> None:
    points = [BlendPoint(0, 0.6, 0.92), BlendPoint(0.5, 0.9, 0.91), BlendPoint(1, 0.95, 0.88)]
    svg = ElementTree.fromstring(blend_chart("blend", "Blend", points, recommended=0.5, used=1))
    assert {text.text for text in svg.findall("text")} >= {"0, base", "0.5, recommended", "1, used"}
    assert svg.find("circle[@class='kept']") is not None
    same = blend_chart("blend", "Blend", points, recommended=1, used=1)
    assert "1, recommended and used" in same
    title_and_description(blend_chart("blend", "Blend", points[:1], recommended=None, used=None))


def test_names_are_moved_apart_no_further_than_the_frame() -> None:
    assert spread([50, 50, 50], apart=10, low=0, high=60) == [40, 50, 60]
    assert spread([5, 90], apart=10, low=0, high=100) == [5, 90]
