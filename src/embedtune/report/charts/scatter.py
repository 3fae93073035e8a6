"""The trials of a search as dots: in their order, and against a setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from embedtune.report.charts.svg import LINE_HEIGHT, WIDTH, Scale, circle, grid, line, path, svg, text, ticks


@dataclass(frozen=True)
class Dot:
    """One trial."""

    x: float
    value: float
    kept: bool = False
    """Drawn with a ring."""
    partial: bool = False
    """Stopped early: drawn pale."""


def trials_chart(name: str, title: str, dots: Sequence[Dot], *, default: float) -> Markup:
    """A metric by the number of the trial, the best so far as a line, the default recipe's value as another.

    Args:
        name, title: as of `bar_chart`.
        dots: by number, from 1 on; at least one.
        default: value of the default recipe.
    """
    x = Scale(0.5, max(dot.x for dot in dots) + 0.5, 48, WIDTH - 14)
    y, marks = _upwards(dots)
    parts = [*grid(x, y, marks), line(x.start, y(default), x.end, y(default), "zero")]
    best, staircase = -math.inf, []
    for dot in dots:
        if not dot.partial and dot.value > best:
            best = dot.value
        if best > -math.inf:
            staircase.append((dot.x, best))
    parts.append(path(staircase, x, y, "curve"))
    parts += [mark for dot in dots for mark in _marks(dot, x(dot.x), y(dot.value))]
    numbers = [tick for tick in ticks(0, x.last, at_most=4) if 1 <= tick <= x.last and tick == round(tick)]
    for number in numbers or [1]:
        label = f"trial {number:g}" if number == (numbers or [1])[-1] else f"{number:g}"
        parts.append(text(min(x(number), x.end - 16), LINE_HEIGHT - 8, label, "tick", anchor="middle"))
    values = ", ".join(f"{dot.value:.4f}{' (stopped early)' if dot.partial else ''}" for dot in dots)
    return svg(name, title, f"{values}. Default recipe: {default:.4f}.", LINE_HEIGHT, parts)


def dial_chart(name: str, title: str, dots: Sequence[Dot], *, labelled: Sequence[float]) -> Markup:
    """A metric against a setting, the setting on a logarithmic axis.

    Args:
        name, title: as of `bar_chart`.
        dots: in any order; at least one. All settings are above 0.
        labelled: settings written below the axis, ascending; the first and the last are its ends.
    """
    first, last = math.log(labelled[0]), math.log(labelled[-1])
    x = Scale(first, max(last, first + 1e-9), 60, WIDTH - 26)
    y, marks = _upwards(dots)
    parts = grid(x, y, marks, left=24)
    for setting in labelled:
        parts.append(line(x(math.log(setting)), 10, x(math.log(setting)), LINE_HEIGHT - 26, "grid"))
        parts.append(text(x(math.log(setting)), LINE_HEIGHT - 8, f"{setting:.3g}", "tick", anchor="middle"))
    parts += [mark for dot in dots for mark in _marks(dot, x(math.log(dot.x)), y(dot.value))]
    values = ", ".join(f"{dot.value:.4f} at {dot.x:.3g}" for dot in sorted(dots, key=lambda dot: dot.x))
    return svg(name, title, f"{values}.", LINE_HEIGHT, parts)


def _upwards(dots: Sequence[Dot]) -> tuple[Scale, list[float]]:
    marks = ticks(min(dot.value for dot in dots), max(dot.value for dot in dots))
    return Scale(marks[0], marks[-1], LINE_HEIGHT - 26, 10), marks


def _marks(dot: Dot, across: float, up: float) -> list[Markup]:
    ring = [circle(across, up, 8, "kept")] if dot.kept else []
    return [circle(across, up, 4, "dot further" if dot.partial else "dot"), *ring]
