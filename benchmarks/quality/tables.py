"""Tables of means, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.description import WITHOUT
from benchmarks.quality.statistics import Mean
from benchmarks.quality.summary import Compared, Row

NOTHING = "–"
HOW_TO_READ = (
    "Mean ± 95 % interval of the mean over n seeds (Student's t); differences are paired by seed. Between seeds: "
    "standard deviation. Between questions: half the 95 % interval of the gain over the base, over the test questions."
)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table as texts."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def quality_grid(data: str, rows: Sequence[Row], first: str, *, metric: str, notes: Sequence[str]) -> Grid:
    """How good each variant is."""
    headings = ("variant", "n", _shown(metric), f"minus {first}", "base", "BM25", "between seeds", "between questions")
    return Grid(
        title=f"{data}: {_shown(metric)} on the test questions",
        headings=headings,
        rows=[
            (
                row.variant,
                str(row.value.n),
                _score(row.value),
                _change(row.difference),
                f"{row.base.mean:.4f}",
                NOTHING if row.bm25 is None else f"{row.bm25.mean:.4f}",
                NOTHING if row.value.deviation is None else f"{row.value.deviation:.4f}",
                NOTHING if row.between_questions is None else f"±{row.between_questions:.4f}",
            )
            for row in rows
        ],
        notes=tuple(notes),
    )


def cost_grid(data: str, rows: Sequence[Row]) -> Grid:
    """What each variant costs: what it forgot, time and memory."""
    sets = tuple(dict.fromkeys(name for row in rows for name in row.forgetting))
    return Grid(
        title=f"{data}: what it costs (sets: tuned minus base)",
        headings=("variant", *sets, "training", "peak memory"),
        rows=[
            (
                row.variant,
                *(_change(row.forgetting.get(name)) for name in sets),
                f"{row.train_seconds.mean:,.0f} s",
                f"{row.peak_memory_bytes / 2**30:.2f} GiB",
            )
            for row in rows
        ],
    )


def compared_grid(rows: Sequence[Compared], data: Sequence[str], first: str, *, metric: str) -> Grid:
    """Every variant beside the first one, over all data sets."""
    return _by_data(rows, data, f"{_shown(metric)} minus that of {first}, over the data sets", "variant")


def ablation_grid(rows: Sequence[Compared], data: Sequence[str], full: str, *, metric: str) -> Grid:
    """What is lost without each part, most on top."""
    return _by_data(rows, data, f"ablation of {full}: {_shown(metric)} lost without it", "without")


def markdown(grids: Sequence[Grid]) -> str:
    """The tables one after the other, and how to read them."""
    parts = []
    for grid in grids:
        lines = [grid.headings, ("---", *("---:" for _ in grid.headings[1:])), *grid.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"**{grid.title}**", table, *grid.notes]
    return "\n\n".join([*parts, HOW_TO_READ]) + "\n"


def _by_data(rows: Sequence[Compared], data: Sequence[str], title: str, heading: str) -> Grid:
    several = len(data) > 1
    body = []
    for row in rows:
        means = [*(row.by_data.get(name) for name in data), *((row.over_data,) if several else ())]
        seeds = [mean.n for mean in means if mean is not None]
        body.append((row.variant.rpartition(WITHOUT)[2], str(min(seeds, default=0)), *map(_change, means)))
    return Grid(title=title, headings=(heading, "n", *data, *(("mean",) if several else ())), rows=body)


def _score(mean: Mean) -> str:
    return f"{mean.mean:.4f}{_interval(mean)}"


def _change(mean: Mean | None) -> str:
    return NOTHING if mean is None else f"{mean.mean:+.4f}{_interval(mean)}"


def _interval(mean: Mean) -> str:
    return "" if mean.half_width is None else f" ±{mean.half_width:.4f}"


def _shown(metric: str) -> str:
    return metric.upper() if "@" in metric else metric


def failures(failed: Mapping[str, str]) -> list[str]:
    """A line for each cell that is left out."""
    return [f"left out: {cell}: {reason}" for cell, reason in failed.items()]
