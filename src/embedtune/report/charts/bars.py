"""Values as bars, and differences as dots with whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from embedtune.report.charts.svg import WIDTH, Scale, circle, line, rect, svg, text, tick_label, ticks

BAR_ROW = 46.0
INTERVAL_ROW = 31.0


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
    style: str = ""
    """CSS class of the dot and its whisker."""


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
            text(0, y + 15, bar.label, f"label {bar.style}"),
            text(WIDTH, y + 15, f"{bar.value:.3f}", "value", anchor="end"),
            rect(0, y + 23, WIDTH, 12, "track"),
            rect(0, y + 23, length, 12, f"bar {bar.style}"),
        ]
    values = ", ".join(f"{bar.label} {bar.value:.3f}" for bar in bars)
    return svg(name, title, f"{values}.", BAR_ROW * len(bars), parts)


def interval_chart(
    name: str,
    title: str,
    intervals: Sequence[Interval],
    *,
    label_width: float = 104,
    extent: tuple[float, float] | None = None,
) -> Markup:
    """Differences as dots with their intervals as whiskers, and a line at 0.

    Args:
        name, title: as of `bar_chart`.
        intervals: from top to bottom.
        label_width: units left of the plot.
        extent: what the axis has to reach from and to besides, so that several charts have the same one.
    """
    bottom = INTERVAL_ROW * len(intervals)
    low, high = extent or (0.0, 0.0)
    marks = ticks(min(low, 0.0, *(i.low for i in intervals)), max(high, 0.0, *(i.high for i in intervals)), at_most=4)
    x = Scale(marks[0], marks[-1], label_width, WIDTH - 20)
    parts = [line(x(tick), 4, x(tick), bottom, "zero" if tick == 0 else "grid") for tick in marks]
    parts += [text(x(tick), bottom + 18, tick_label(tick, marks, "+"), "tick", anchor="middle") for tick in marks]
    for row, interval in enumerate(intervals):
        y = (row + 0.5) * INTERVAL_ROW
        parts += [
            text(0, y + 4, interval.label, "label"),
            line(x(interval.low), y, x(interval.high), y, f"whisker {interval.style}".strip()),
            circle(x(interval.mean), y, 4.5, f"dot {interval.style}".strip()),
        ]
    values = "; ".join(f"{i.label} {i.mean:+.3f}, {i.low:+.3f} to {i.high:+.3f}" for i in intervals)
    return svg(name, title, f"{values}.", bottom + 26, parts)
