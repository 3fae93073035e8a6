"""Several curves in one frame, each named where it ends: recall by depth, quality by size, the blend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from embedtune.report.charts.svg import WIDTH, Point, Scale, circle, grid, path, spread, svg, text, tick_label, ticks

HEIGHT = 240.0
LABELLED_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Series:
    """One curve."""

    label: str
    style: str
    """CSS class of the curve and its name."""
    points: Sequence[Point]


@dataclass(frozen=True)
class BlendPoint:
    """Base and tuned weights mixed: what it is worth in both respects."""

    weight: float
    """0 is the base model, 1 the tuned one."""
    dev: float
    forgetting: float


def recall_chart(name: str, title: str, series: Sequence[Series]) -> Markup:
    """A value by rank, the ranks on a logarithmic axis.

    Args:
        name, title: as of `bar_chart`.
        series: (rank, value) from rank 1 on, the same ranks for all.
    """
    ranks = [rank for rank, _ in series[0].points]
    values = [value for one in series for _, value in one.points]
    marks = ticks(min(values), max(values))
    x, y = Scale(math.log(ranks[0]), math.log(max(ranks[-1], ranks[0] + 1)), 44, WIDTH - 68), _upwards(marks)
    parts = grid(x, y, marks)
    for rank in ranks:
        if rank in LABELLED_RANKS:
            label = f"k = {rank:g}" if rank == ranks[0] else f"{rank:g}"
            parts.append(text(x(math.log(rank)), HEIGHT - 8, label, "tick", anchor="middle"))
    ends = spread([y(one.points[-1][1]) for one in series], apart=16, low=20, high=HEIGHT - 30)
    # The first of the series lies on top: it is the one that the page is about.
    for one, end in reversed(list(zip(series, ends, strict=True))):
        drawn = [(math.log(rank), value) for rank, value in one.points]
        parts += [path(drawn, x, y, f"curve {one.style}"), text(x.end + 8, end + 4, one.label, f"name {one.style}")]
    described = "; ".join(
        f"{one.label} " + ", ".join(f"{value:.3f} at {rank:g}" for rank, value in one.points) for one in series
    )
    return svg(name, title, f"{described}.", HEIGHT, parts)


def size_chart(name: str, title: str, series: Sequence[Series]) -> Markup:
    """A value by bytes a vector, the bytes on a logarithmic axis.

    Args:
        name, title: as of `bar_chart`.
        series: (bytes, value), bytes ascending.
    """
    sizes = [size for one in series for size, _ in one.points]
    values = [value for one in series for _, value in one.points]
    marks = ticks(min(values), max(values))
    first, last = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    x, y = Scale(first, max(last, first + 1), 48, WIDTH - 14), _upwards(marks)
    parts = grid(x, y, marks)
    powers = range(first, last + 1, max(1, math.ceil((last - first) / 5)))
    for power in powers:
        label = f"{2**power:,} bytes" if power == powers[0] else f"{2**power:,}"
        parts.append(text(min(max(x(power), 60), WIDTH - 18), HEIGHT - 8, label, "tick", anchor="middle"))
    for one in series:
        drawn = [(math.log2(size), value) for size, value in one.points]
        parts.append(path(drawn, x, y, f"curve {one.style}"))
        parts += [circle(x(size), y(value), 3.5, f"dot {one.style}") for size, value in drawn]
        size, value = drawn[-1]
        anchor = "end" if x(size) > WIDTH - 40 else "middle"
        parts.append(text(x(size), y(value) - 10, one.label, f"name {one.style}", anchor=anchor))
    described = "; ".join(
        f"{one.label} " + ", ".join(f"{value:.3f} at {size:g} bytes" for size, value in one.points) for one in series
    )
    return svg(name, title, f"{described}.", HEIGHT, parts)


def blend_chart(
    name: str, title: str, points: Sequence[BlendPoint], *, recommended: float | None, used: float | None
) -> Markup:
    """The dev metric (up) against the forgetting sets (right) of base and tuned weights mixed in several ways.

    Args:
        name, title: as of `bar_chart`.
        points: by weight, at least one.
        recommended: weight to mark as recommended.
        used: weight to mark as that of the saved model.
    """
    across, up = [point.forgetting for point in points], [point.dev for point in points]
    x_marks, y_marks = ticks(min(across), max(across), at_most=4), ticks(min(up), max(up))
    x = Scale(x_marks[0], x_marks[-1], 48, WIDTH - 30)
    y = _upwards(y_marks)
    parts = grid(x, y, y_marks)
    parts += [text(x(tick), HEIGHT - 8, tick_label(tick, x_marks), "tick", anchor="middle") for tick in x_marks]
    parts.append(path([(point.forgetting, point.dev) for point in points], x, y, "curve"))
    for point in points:
        place = x(point.forgetting), y(point.dev)
        label = _blend_label(point.weight, points, recommended, used)
        parts.append(circle(*place, 3.5, "dot"))
        if point.weight == used:
            parts.append(circle(*place, 6, "dot"))
        if point.weight == recommended:
            parts.append(circle(*place, 10, "kept"))
        if label:
            anchor, shift = ("end", -1) if place[0] > WIDTH * 0.55 else ("start", 1)
            # One above its point and one below: they may be neighbours.
            aside, down = {used: (0, -13), recommended: (0, 26)}.get(point.weight, (12, 4))
            parts.append(text(place[0] + shift * aside, place[1] + down, label, "tick", anchor=anchor))
    described = ", ".join(f"weight {p.weight:g}: dev {p.dev:.3f}, forgetting {p.forgetting:.3f}" for p in points)
    marked = "".join(
        f" {what} weight: {weight:g}." for what, weight in (("Recommended", recommended), ("Used", used)) if weight
    )
    return svg(name, title, f"{described}.{marked}", HEIGHT, parts)


def _blend_label(weight: float, points: Sequence[BlendPoint], recommended: float | None, used: float | None) -> str:
    """What is written beside a point: the ends of the curve and the marked points have names."""
    names = [name for name, marked in (("recommended", recommended), ("used", used)) if marked == weight]
    if names:
        return f"{weight:g}, {' and '.join(names)}"
    ends = {points[0].weight: "base", points[-1].weight: "tuned"}
    return f"{weight:g}, {ends[weight]}" if weight in ends and weight in (0, 1) else ""


def _upwards(marks: Sequence[float]) -> Scale:
    return Scale(marks[0], marks[-1], HEIGHT - 28, 24)
