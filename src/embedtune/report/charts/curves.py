"""What a training run recorded, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from embedtune.report.charts.svg import LINE_HEIGHT, WIDTH, Point, Scale, circle, grid, path, svg, text, ticks

MOST_POINTS = 180
"""A longer curve is drawn as the means of so many stretches."""


def loss_chart(name: str, title: str, losses: Sequence[float]) -> Markup:
    """The loss of each step, faint, and its moving mean.

    Args:
        name, title: as of `bar_chart`.
        losses: of step 1, 2, …; at least one.
    """
    points = _thinned(losses)
    smooth = _smoothed(points)
    marks = ticks(0.0, max(y for _, y in points))
    x, y = _scales(len(losses), marks)
    parts = _axes(x, y, marks)
    parts += [path(points, x, y, "raw"), path(smooth, x, y, "curve")]
    if len(points) == 1:
        parts.append(circle(x(points[0][0]), y(points[0][1]), 4, "dot"))
    description = (
        f"Moving mean of the loss: {smooth[0][1]:.3g} at the start, {smooth[-1][1]:.3g} at step {len(losses)}."
    )
    return svg(name, title, description, LINE_HEIGHT, parts)


def dev_chart(
    name: str,
    title: str,
    points: Sequence[Point],
    *,
    steps: float,
    kept: Sequence[float],
    starts: Sequence[float] = (0,),
) -> Markup:
    """A metric at each evaluation, the kept checkpoints marked; a curve for each training.

    Args:
        name, title: as of `bar_chart`.
        points: (step, value) of each evaluation; at least one.
        steps: right end of the axis.
        kept: steps of the kept checkpoints, as far as known.
        starts: steps at which trainings began, each where the first one did: at the first point's value.
    """
    marks = ticks(min(value for _, value in points), max(value for _, value in points))
    x, y = _scales(max(steps, *(step for step, _ in points)), marks)
    parts = _axes(x, y, marks)
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        own = [(step, value) for step, value in points if start < step <= end]
        parts.append(path([(start, points[0][1]), *own], x, y, "curve"))
    parts += [circle(x(step), y(value), 3, "dot") for step, value in points]
    for step, value in points:
        if step in kept:
            parts.append(circle(x(step), y(value), 7, "kept"))
            # Below its point and towards the middle, where the curve is not and the frame does not cut it off.
            anchor = "end" if x(step) > WIDTH / 2 else "start"
            parts.append(text(x(step), min(y(value) + 24, LINE_HEIGHT - 36), "kept", "tick", anchor=anchor))
    values = ", ".join(f"{value:.3f} at step {step:g}" for step, value in points)
    return svg(name, title, f"{values}.{_what_was_kept(kept)}", LINE_HEIGHT, parts)


def _what_was_kept(steps: Sequence[float]) -> str:
    if len(steps) > 1:
        return f" The mean of the models of steps {', '.join(f'{step:g}' for step in steps)} was kept."
    return f" The model of step {steps[0]:g} was kept." if steps else ""


def _scales(steps: float, marks: Sequence[float]) -> tuple[Scale, Scale]:
    x = Scale(0, max(1, steps), 48, WIDTH - 14)
    return x, Scale(marks[0], marks[-1], LINE_HEIGHT - 26, 10)


def _axes(x: Scale, y: Scale, marks: Sequence[float]) -> list[Markup]:
    """Horizontal grid lines with their values, and steps along the bottom."""
    parts = grid(x, y, marks)
    steps = [tick for tick in ticks(0, x.last, at_most=4) if tick <= x.last and tick == round(tick)]
    for step in steps:
        label = f"step {step:,.0f}" if step == steps[-1] else f"{step:,.0f}"
        parts.append(text(min(x(step), x.end - 12), LINE_HEIGHT - 8, label, "tick", anchor="middle"))
    return parts


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
