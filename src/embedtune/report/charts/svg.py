"""What every chart is made of: marks, scales, round ticks, and the frame with its text alternative."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 360.0
LINE_HEIGHT = 200.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps values from `first` to `last` to places from `start` to `end`."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.first) / (self.last - self.first) * (self.end - self.start)


def svg(name: str, title: str, description: str, height: float, parts: Iterable[Markup]) -> Markup:
    """The whole chart.

    Args:
        name: starts the ids in the markup; one of a kind on the page.
        title: what the chart shows.
        description: the values in words; with the title it is the text alternative.
        height: in units, of which the width has `WIDTH`.
        parts: the marks, the lowest first.
    """
    return Markup(
        '<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        'aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{description}</desc>{body}</svg>'
    ).format(
        width=WIDTH,
        height=height,
        name=name,
        title=title,
        description=description,
        body=Markup("").join(parts),
    )


def text(x: float, y: float, content: str, style: str, *, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, style, anchor, content
    )


def rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" class="{}"/>').format(
        x, y, width, height, style
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def circle(x: float, y: float, radius: float, style: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" class="{}"/>').format(x, y, radius, style)


def path(points: Sequence[Point], x: Scale, y: Scale, style: str) -> Markup:
    places = " ".join(f"{x(across):.1f},{y(up):.1f}" for across, up in points)
    return Markup('<polyline points="{}" class="{}"/>').format(places, style)


def grid(x: Scale, y: Scale, ticks: Sequence[float], *, left: float = 12) -> list[Markup]:
    """Horizontal lines with their values `left` units before them."""
    parts = []
    for tick in ticks:
        parts.append(line(x.start, y(tick), x.end, y(tick), "grid"))
        parts.append(text(x.start - left, y(tick) + 4, tick_label(tick, ticks), "tick", anchor="end"))
    return parts


def ticks(low: float, high: float, *, at_most: int = 5) -> list[float]:
    """Round values, evenly spaced, from at or below `low` to at or above `high`; at least two."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / at_most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_label(tick: float, among: Sequence[float], sign: str = "") -> str:
    """A tick with as many decimals as tell it from its neighbours."""
    if tick == 0:
        return "0"
    decimals = max(0, -math.floor(math.log10(among[1] - among[0]) + 1e-9))
    return format(tick, f"{sign}.{decimals}f").replace("-", "−")


def spread(places: Sequence[float], *, apart: float, low: float, high: float) -> list[float]:
    """Places moved as little as keeps them `apart` and between `low` and `high`, in the order given."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    moved = list(places)
    for before, number in zip([None, *order], order, strict=False):
        moved[number] = max(moved[number], low if before is None else moved[before] + apart)
    for after, number in zip([None, *order[::-1]], order[::-1], strict=False):
        moved[number] = min(moved[number], high if after is None else moved[after] - apart)
    return moved
