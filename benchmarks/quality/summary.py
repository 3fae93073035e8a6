"""What the cells of a data set come to: means over seeds, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from benchmarks.quality.statistics import Mean, mean_of, over_data, paired


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `results.json` of a cell says that is compared."""

    value: float
    """The metric of the tuned model."""
    base: float
    bm25: float | None
    between_questions: float | None
    """Half the width of the 95 % interval of the gain over the base, which is over the test questions."""
    forgetting: dict[str, float]
    """By set, tuned minus base."""
    train_seconds: float
    peak_memory_bytes: int
    test: str
    """Checksum of the test pairs."""
    device: str
    """What it ran on, and in which precision."""


SAME_QUESTIONS = "All seeds have the same test questions: the intervals say nothing of other questions."
OWN_QUESTIONS = "Seeds test on questions of their own: the spread between seeds has that between questions in it."

Cells = Mapping[str, Mapping[int, Measured]]
"""Variant to seed to what was measured, of one data set."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant on one data set."""

    variant: str
    value: Mean
    difference: Mean | None
    """To the first variant, paired by seed; None for the first, and where no seed has the same test questions."""
    base: Mean
    bm25: Mean | None
    between_questions: float | None
    """Mean over the seeds."""
    forgetting: dict[str, Mean] = field(default_factory=dict)
    train_seconds: Mean
    peak_memory_bytes: int
    """Largest of the seeds."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One variant beside the first one, over the data sets."""

    variant: str
    by_data: dict[str, Mean]
    over_data: Mean | None
    """Of each seed's mean over the data sets; None where a seed is nowhere complete, and with one data set."""

    @property
    def size(self) -> float:
        """By which rows are sorted."""
        means = [self.over_data] if self.over_data is not None else list(self.by_data.values())
        return fmean(mean.mean for mean in means) if means else 0.0


def lacks(results: Mapping[str, Any], metric: str) -> str:
    """Why a `results.json` can't be compared by a metric; empty if it can."""
    known = results["tuned"].keys() & results["base"].keys()
    return "" if metric in known else f'its results.json has no "{metric}"; it has {", ".join(sorted(known))}'


def measured_of(results: Mapping[str, Any], metric: str) -> Measured:
    """What is compared of a `results.json` that `lacks` nothing."""
    train, environment = results["train"], results["environment"]
    interval = results["delta"].get(metric, {}).get("ci95")
    return Measured(
        value=results["tuned"][metric],
        base=results["base"][metric],
        bm25=results.get("bm25", {}).get(metric),
        between_questions=None if interval is None else (interval[1] - interval[0]) / 2,
        forgetting={one["name"]: one["delta"]["mean"] for one in results.get("forgetting", {}).get("sets", ())},
        train_seconds=train["seconds"],
        peak_memory_bytes=train["peak_memory_bytes"],
        test=results["data"]["hashes"]["test"],
        device=f"{environment['device_name']} in {environment['precision']}",
    )


def summarize(cells: Cells, first: str) -> list[Row]:
    """A row for each variant that has a cell, in their order."""
    return [_row(variant, seeds, cells.get(first, {}), first) for variant, seeds in cells.items() if seeds]


def compare(by_data: Mapping[str, Cells], first: str, *, lost: bool = False) -> list[Compared]:
    """Every variant but the first, beside it.

    Args:
        by_data: the cells of each data set.
        first: the variant that they are compared with.
        lost: first minus other instead of other minus first, the largest mean on top.
    """
    names = dict.fromkeys(variant for cells in by_data.values() for variant in cells if variant != first)
    rows = [_compared(name, by_data, first, sign=-1 if lost else 1) for name in names]
    return sorted(rows, key=lambda row: -row.size) if lost else rows


def remarks(cells: Cells, first: str) -> list[str]:
    """What must be known to read a data set's rows."""
    said = []
    if len({seed for seeds in cells.values() for seed in seeds}) > 1:
        same = all(len({one.test for one in seeds.values()}) <= 1 for seeds in cells.values())
        said.append(SAME_QUESTIONS if same else OWN_QUESTIONS)
    for variant, seeds in cells.items():
        others = [
            seed for seed in seeds if seed in cells.get(first, {}) and not _same_test(cells, variant, first, seed)
        ]
        if others:
            listed = ", ".join(map(str, others))
            said.append(f"{variant} was tested on other questions than {first} with seed {listed}: not compared there.")
    return said


def _row(variant: str, seeds: Mapping[int, Measured], others: Mapping[int, Measured], first: str) -> Row:
    sets = dict.fromkeys(name for one in seeds.values() for name in one.forgetting)
    spreads = [one.between_questions for one in seeds.values() if one.between_questions is not None]
    return Row(
        variant=variant,
        value=_mean([one.value for one in seeds.values()]),
        difference=None if variant == first else mean_of(list(_difference(seeds, others).values())),
        base=_mean([one.base for one in seeds.values()]),
        bm25=mean_of([one.bm25 for one in seeds.values() if one.bm25 is not None]),
        between_questions=fmean(spreads) if spreads else None,
        forgetting={
            name: _mean([one.forgetting[name] for one in seeds.values() if name in one.forgetting]) for name in sets
        },
        train_seconds=_mean([one.train_seconds for one in seeds.values()]),
        peak_memory_bytes=max(one.peak_memory_bytes for one in seeds.values()),
    )


def _compared(variant: str, by_data: Mapping[str, Cells], first: str, *, sign: int) -> Compared:
    differences = {
        data: {seed: sign * value for seed, value in _difference(cells.get(variant, {}), cells.get(first, {})).items()}
        for data, cells in by_data.items()
    }
    found = {data: mean for data, values in differences.items() if (mean := mean_of(list(values.values()))) is not None}
    together = mean_of(list(over_data(list(differences.values())).values())) if len(by_data) > 1 else None
    return Compared(variant=variant, by_data=found, over_data=together)


def _difference(seeds: Mapping[int, Measured], others: Mapping[int, Measured]) -> dict[int, float]:
    """Of the seeds that both have, on the same test questions."""
    same = [seed for seed in seeds if seed in others and seeds[seed].test == others[seed].test]
    return paired({seed: seeds[seed].value for seed in same}, {seed: others[seed].value for seed in same})


def _same_test(cells: Cells, one: str, other: str, seed: int) -> bool:
    return cells[one][seed].test == cells[other][seed].test


def _mean(values: Sequence[float]) -> Mean:
    found = mean_of(values)
    assert found is not None
    return found
