"""Charts as inline SVG from plain numbers. All text in them is escaped, all colours are the page's CSS classes.

A chart is 360 units wide, about what it gets in pixels on a phone and in half of a wide page, so that its text is as
large as the page's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 360.0
BAR_ROW = 58.0
INTERVAL_ROW = 31.0
LINE_HEIGHT = 200.0
MOST_POINTS = 180
"""A longer curve is drawn as the means of so many stretches."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """One value from 0 to 1."""

    label: str
    value: float
    style: str
    """CSS class of the bar."""


@dataclass(frozen=True)
class Interval:
    """One difference with the ends of its interval."""

    label: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class _Scale:
    """Maps values from `first` to `last` to places from `start` to `end`."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.first) / (self.last - self.first) * (self.end - self.start)


def bar_chart(name: str, title: str, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars from 0 to 1, each with its label and its value above.

    Args:
        name: starts the ids in the markup; one of a kind on the page.
        title: what the chart shows; with the values it is the text alternative.
        bars: from top to bottom.
    """
    parts = []
    for row, bar in enumerate(bars):
        y = row * BAR_ROW
        length = max(2.0, min(1.0, bar.value) * WIDTH)
        parts += [
            _text(0, y + 18, bar.label, "label"),
            _text(WIDTH, y + 18, f"{bar.value:.3f}", "value", anchor="end"),
            _rect(0, y + 27, WIDTH, 16, "track"),
            _rect(0, y + 27, length, 16, f"bar {bar.style}"),
        ]
    values = ", ".join(f"{bar.label} {bar.value:.3f}" for bar in bars)
    return _svg(name, title, f"{values}.", BAR_ROW * len(bars), parts)


def interval_chart(name: str, title: str, intervals: Sequence[Interval]) -> Markup:
    """Differences as dots with their intervals as whiskers, and a line at 0.

    Args: as of `bar_chart`.
    """
    bottom = INTERVAL_ROW * len(intervals)
    ticks = _ticks(min(0.0, *(i.low for i in intervals)), max(0.0, *(i.high for i in intervals)))
    x = _Scale(ticks[0], ticks[-1], 104, WIDTH - 16)
    parts = [_line(x(tick), 4, x(tick), bottom, "zero" if tick == 0 else "grid") for tick in ticks]
    parts += [_text(x(tick), bottom + 18, _tick_label(tick, ticks, "+"), "tick", anchor="middle") for tick in ticks]
    for row, interval in enumerate(intervals):
        y = (row + 0.5) * INTERVAL_ROW
        parts += [
            _text(0, y + 4, interval.label, "label"),
            _line(x(interval.low), y, x(interval.high), y, "whisker"),
            _circle(x(interval.mean), y, 4.5, "dot"),
        ]
    values = "; ".join(f"{i.label} {i.mean:+.3f}, {i.low:+.3f} to {i.high:+.3f}" for i in intervals)
    return _svg(name, title, f"{values}.", bottom + 26, parts)


def loss_chart(name: str, title: str, losses: Sequence[float]) -> Markup:
    """The loss of each step, faint, and its moving mean.

    Args:
        name, title: as of `bar_chart`.
        losses: of step 1, 2, …; at least one.
    """
    points = _thinned(losses)
    smooth = _smoothed(points)
    ticks = _ticks(0.0, max(y for _, y in points))
    x, y = _line_scales(len(losses), ticks)
    parts = _axes(x, y, ticks)
    parts += [_path(points, x, y, "raw"), _path(smooth, x, y, "curve")]
    if len(points) == 1:
        parts.append(_circle(x(points[0][0]), y(points[0][1]), 4, "dot"))
    description = (
        f"Moving mean of the loss: {smooth[0][1]:.3g} at the start, {smooth[-1][1]:.3g} at step {len(losses)}."
    )
    return _svg(name, title, description, LINE_HEIGHT, parts)


def dev_chart(name: str, title: str, points: Sequence[Point], *, steps: float, best_step: float | None) -> Markup:
    """A metric at each evaluation, the kept checkpoint marked.

    Args:
        name, title: as of `bar_chart`.
        points: (step, value) of each evaluation; at least one.
        steps: right end of the axis.
        best_step: step of the kept checkpoint, if known.
    """
    ticks = _ticks(min(value for _, value in points), max(value for _, value in points))
    x, y = _line_scales(max(steps, *(step for step, _ in points)), ticks)
    parts = [*_axes(x, y, ticks), _path(points, x, y, "curve")]
    parts += [_circle(x(step), y(value), 3, "dot") for step, value in points]
    for step, value in points:
        if step == best_step:
            parts.append(_circle(x(step), y(value), 7, "kept"))
            # Below its point and towards the middle, where the curve is not and the frame does not cut it off.
            anchor = "end" if x(step) > WIDTH / 2 else "start"
            parts.append(_text(x(step), min(y(value) + 24, LINE_HEIGHT - 36), "kept", "tick", anchor=anchor))
    values = ", ".join(f"{value:.3f} at step {step:g}" for step, value in points)
    kept = "" if best_step is None else f" The model of step {best_step:g} was kept."
    return _svg(name, title, f"{values}.{kept}", LINE_HEIGHT, parts)


def _line_scales(steps: float, ticks: Sequence[float]) -> tuple[_Scale, _Scale]:
    x = _Scale(0, max(1, steps), 48, WIDTH - 14)
    return x, _Scale(ticks[0], ticks[-1], LINE_HEIGHT - 26, 10)


def _axes(x: _Scale, y: _Scale, ticks: Sequence[float]) -> list[Markup]:
    """Horizontal grid lines with their values, and steps along the bottom."""
    parts = []
    for tick in ticks:
        parts.append(_line(x.start, y(tick), x.end, y(tick), "grid"))
        parts.append(_text(x.start - 12, y(tick) + 4, _tick_label(tick, ticks), "tick", anchor="end"))
    steps = [tick for tick in _ticks(0, x.last, at_most=4) if tick <= x.last and tick == round(tick)]
    for step in steps:
        label = f"step {step:,.0f}" if step == steps[-1] else f"{step:,.0f}"
        parts.append(_text(min(x(step), x.end - 12), LINE_HEIGHT - 8, label, "tick", anchor="middle"))
    return parts


def _ticks(low: float, high: float, *, at_most: int = 5) -> list[float]:
    """Round values, evenly spaced, from at or below `low` to at or above `high`; at least two."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / at_most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _tick_label(tick: float, ticks: Sequence[float], sign: str = "") -> str:
    if tick == 0:
        return "0"
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return format(tick, f"{sign}.{decimals}f").replace("-", "−")


def _thinned(values: Sequence[float]) -> list[Point]:
    """(step, value), steps from 1; in stretches of equal length if there are more than `MOST_POINTS`."""
    size = math.ceil(len(values) / MOST_POINTS)
    stretches = [values[start : start + size] for start in range(0, len(values), size)]
    return [(1 + row * size + (len(part) - 1) / 2, sum(part) / len(part)) for row, part in enumerate(stretches)]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Mean of each point and its neighbours within a sixteenth of the curve on either side."""
    reach = len(points) // 16
    smooth = []
    for row, (step, _) in enumerate(points):
        near = [value for _, value in points[max(0, row - reach) : row + reach + 1]]
        smooth.append((step, sum(near) / len(near)))
    return smooth


def _svg(name: str, title: str, description: str, height: float, parts: Iterable[Markup]) -> Markup:
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


def _text(x: float, y: float, text: str, style: str, *, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(x, y, style, anchor, text)


def _rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" class="{}"/>').format(
        x, y, width, height, style
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def _circle(x: float, y: float, radius: float, style: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" class="{}"/>').format(x, y, radius, style)


def _path(points: Sequence[Point], x: _Scale, y: _Scale, style: str) -> Markup:
    places = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    return Markup('<polyline points="{}" class="{}"/>').format(places, style)
