"""Several trainings counted as one."""

from __future__ import annotations

from embedtune.training.checkpoint import Progress
from embedtune.training.reached import Reached


def went(steps: int, best_step: int, best: float) -> Progress:
    """Evaluated before the first step and after the last one."""
    return Progress(
        step=steps,
        pairs=10 * steps,
        tokens=100 * steps,
        seconds=0.5 * steps,
        best_step=best_step,
        best_metric=best,
        losses=[float(steps)] * steps,
        evaluations=[{"step": 0, "m": 0.5}, {"step": steps, "m": best}],
    )


def reached(*members: Progress) -> Reached:
    kept = [number for number, member in enumerate(members) if member.best_step]
    return Reached(members=members, kept=kept, trainable=1, total=2)


def test_counts_are_sums_and_steps_are_counted_on() -> None:
    found = reached(went(4, 4, 0.7), went(3, 0, 0.5), went(2, 1, 0.8))
    assert (found.steps, found.pairs, found.tokens, found.seconds) == (9, 90, 900, 4.5)
    assert found.losses == [4.0] * 4 + [3.0] * 3 + [2.0] * 2
    assert [entry["step"] for entry in found.evaluations] == [0, 4, 7, 9]
    assert [entry["m"] for entry in found.evaluations] == [0.5, 0.7, 0.5, 0.8]
    assert found.best_step == 4 + 3 + 1


def test_no_step_is_the_best_where_none_was_better_than_the_start() -> None:
    assert reached(went(4, 0, 0.5), went(4, 0, 0.5)).best_step == 0
    assert reached(went(4, 0, 0.5), went(4, 3, 0.6)).best_step == 7


def test_of_equal_ones_the_first_is_the_best() -> None:
    assert reached(went(4, 2, 0.6), went(4, 3, 0.6)).best_step == 2
