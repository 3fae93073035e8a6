"""The trials of a search, one after another, until all are done or the time is over."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from embedtune.config.tuning import TuneConfig
from embedtune.errors import RunError, StorageError, TrainingInterrupted
from embedtune.models.memory import out_of_memory
from embedtune.progress import Reporter
from embedtune.training.signals import EXIT_SECONDS, Stopped, StopRequest
from embedtune.tuning import outcome
from embedtune.tuning.folder import SearchFolder
from embedtune.tuning.records import State, Trial
from embedtune.tuning.space import Dial, Values, with_values
from embedtune.tuning.study import Study
from embedtune.tuning.trial import Material, Watch, train_once

IsHopeless = Callable[[int, float], bool]
"""Told the number of an evaluation and its dev metric; whether the training is to end."""


class _HopelessError(Exception):
    """Ends a training that the pruner gave up."""


class _End(NamedTuple):
    """How a training ended."""

    state: State
    metric: float | None = None
    best_step: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Trials:
    """What is left of a search. Requests to stop are held but for the trainings, so that files stay whole."""

    config: TuneConfig
    folder: SearchFolder
    material: Material
    dials: tuple[Dial, ...]
    study: Study
    stop: StopRequest
    reporter: Reporter

    def run(self) -> dict[str, Any]:
        """Train; returns what came of the search, as `outcome.summarise` has it.

        Raises:
            RunError: the default recipe fails, or a file can't be written.
            TrainingInterrupted: somebody asked, or the time was over before the first trial was.
        """
        while (go := self._next()) is not None and self._has_time() and go():
            self._write()
        if not self.study.trials:
            raise TrainingInterrupted(
                f"--time-budget {self.config.tuning.time_budget}: over before the default recipe was trained once.",
                TrainingInterrupted.TIME_IS_UP,
            )
        return self._write()

    def _next(self) -> Callable[[], bool] | None:
        """What to do next, if anything is left; it returns whether its training came to an end."""
        if self.study.trials and len(self.study.repeats) < self.config.tuning.repeats:
            return self._repeat
        return self._try if len(self.study.trials) < self.config.tuning.trials else None

    def _write(self) -> dict[str, Any]:
        summary = outcome.summarise(self.config, self.dials, self.study, self.material.splits)
        outcome.write(summary, self.config, self.study, self.folder)
        return summary

    def _has_time(self) -> bool:
        """Whether the shortest of the trials so far would fit into what is left."""
        lengths = [trial.seconds for trial in self.study.trials if trial.state == "finished"]
        if self.stop.seconds_left > min(lengths, default=0.0):
            return True
        self.reporter.note(f"--time-budget {self.config.tuning.time_budget}: no time for another trial")
        return False

    def _try(self) -> bool:
        asked, number = self.study.ask(), len(self.study.trials)
        what = ": the default recipe" if number == 0 else ""
        self.reporter.stage(f"Trial {number + 1} of {self.config.tuning.trials}{what}")
        result = self._train(asked.values, self.config.output.seed, number, asked.is_hopeless)
        if result is not None:
            self.study.tell(asked, result)
        return result is not None

    def _repeat(self) -> bool:
        self.reporter.stage("The default recipe again, with another seed")
        seed = self.config.output.seed + 1 + len(self.study.repeats)
        result = self._train(self.study.trials[0].values, seed, None, lambda evaluation, metric: False)
        if result is not None:
            self.study.add_repeat(result)
        return result is not None

    def _train(self, values: Values, seed: int, number: int | None, is_hopeless: IsHopeless) -> Trial | None:
        """One training and what came of it; None if the time was over in it."""
        self.reporter.note(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        seen, started = list[tuple[int, float]](), time.monotonic()

        def watch(step: int, metric: float) -> None:
            seen.append((step, metric))
            with self.stop.held():
                hopeless = is_hopeless(len(seen) - 1, metric)
            if hopeless:
                raise _HopelessError

        try:
            end = self._attempt(values, seed, number, watch)
        finally:
            shutil.rmtree(self.folder.scratch, ignore_errors=True)
            gc.collect()
            torch.cuda.empty_cache()
        if end is None:
            return None
        return Trial(
            **end._asdict(),
            number=number,
            values=dict(values),
            seed=seed,
            dev=[metric for _, metric in seen],
            steps=seen[-1][0] if seen else 0,
            seconds=round(time.monotonic() - started, 3),
        )

    def _attempt(self, values: Values, seed: int, number: int | None, watch: Watch) -> _End | None:
        """Train, and say how it ended; None if the time was over."""
        config = with_values(self.config, values, seed=seed)
        try:
            with self.stop.at_once(reserve=EXIT_SECONDS):
                progress = train_once(
                    config, self.material, self.folder.scratch, watch=watch, stop=self.stop, reporter=self.reporter
                )
        except (Stopped, TrainingInterrupted):
            self._stopped(number)
            return None
        except _HopelessError:
            self.reporter.note("stopped: its best is below what half of the trials had reached by then")
            return _End("pruned")
        except (RuntimeError, MemoryError, RunError) as error:
            reason = _survivable(error, number)
            self.reporter.warn(f"this trial failed: {reason}")
            return _End("failed", reason=reason)
        return _End("finished", metric=progress.best_metric, best_step=progress.best_step)

    def _stopped(self, number: int | None) -> None:
        """The time is over, which is no error; or raise, since somebody asked.

        Raises:
            TrainingInterrupted: somebody did.
        """
        code = self.stop.exit_code or TrainingInterrupted.exit_code
        if code == TrainingInterrupted.TIME_IS_UP:
            budget = self.config.tuning.time_budget
            self.reporter.note(f"--time-budget {budget}: over in this training, which does not count")
            return
        where = "the repeat" if number is None else f"trial {number + 1}"
        raise TrainingInterrupted(
            f"stopped in {where}, which will begin again; trials that are over and saved: {len(self.study.trials)}.",
            code,
        )


def _survivable(error: Exception, number: int | None) -> str:
    """What ended a trial, if the search can go on with others; raises the error again if not.

    Settings may be ones that diverge or don't fit the memory. Not so the default recipe: nothing can be held against
    it then. A disk that is full is full for all.
    """
    known = isinstance(error, RunError) and not isinstance(error, StorageError)
    if number == 0 or not (known or out_of_memory(error)):
        raise error
    first_line = str(error).partition("\n")[0]
    return first_line if known else f"memory ran out: {first_line}"
