"""A search for better settings, top to bottom: data, base model, trials, what came of them."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from embedtune import stages
from embedtune.config import AdapterConfig
from embedtune.config.tuning import TuneConfig
from embedtune.config_file import to_toml
from embedtune.data.fingerprint import data_hashes
from embedtune.data.prepare import prepare, write_splits
from embedtune.durations import parse_seconds
from embedtune.endings import clear_ending, clear_errors
from embedtune.errors import ConfigError, RunError, StorageError, TrainingInterrupted
from embedtune.export.run_folder import RunFolder, RunLock, write_json, write_text
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import check_trainable
from embedtune.models.encoder import Encoder
from embedtune.models.memory import out_of_memory
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.results import environment
from embedtune.resolving import resolve
from embedtune.resuming import Identity, same_settings
from embedtune.training.checkpoint import Progress
from embedtune.training.optim import check_8bit
from embedtune.training.plan import make_plan
from embedtune.training.random_state import same_bits
from embedtune.training.signals import EXIT_SECONDS, Stopped, StopRequest, stop_requests
from embedtune.tuning import outcome
from embedtune.tuning.folder import SearchFolder
from embedtune.tuning.records import Trial
from embedtune.tuning.space import Dial, Values, search_space, with_values
from embedtune.tuning.study import Study
from embedtune.tuning.trial import Material, train_once

Watch = Callable[[int, float], bool]
"""Told the number of an evaluation and its dev metric; whether the trial is hopeless."""


class _HopelessError(Exception):
    """Ends a training that the pruner gave up."""


def tune(config: TuneConfig, reporter: Reporter | None = None, *, started: float | None = None) -> dict[str, Any]:
    """Search settings by the dev metric, beginning with the default recipe; the test split has no part in it.

    Args:
        config: everything the search can be told.
        reporter: is told how it goes; silent by default.
        started: when `time_budget` began, by `time.monotonic()`; now if not given.

    Returns:
        What came of it, as `outcome.summarise` has it.

    Raises:
        UserError: the data, the base model, an option or the output folder can't be used.
        RunError: the search failed; the trials before are saved.
        TrainingInterrupted: it was stopped, or its time was over before the first trial was.
    """
    reporter = reporter or SilentReporter()
    folder = SearchFolder(config.output.out)
    folder.check(resume=config.output.resume)
    budget = config.tuning.time_budget
    spent = 0.0 if started is None else time.monotonic() - started
    seconds = parse_seconds(budget, option="time-budget") - spent if budget else None
    with (
        same_bits(config.training.deterministic),
        stop_requests(seconds) as stop,
        RunLock(folder.root) as lock,
    ):
        with clear_ending(folder, lock, stop):
            search = _prepare(config, folder, lock, stop, reporter)
        with clear_errors(folder, lock, _kept):
            return search.run()


def _prepare(config: TuneConfig, folder: SearchFolder, lock: RunLock, stop: StopRequest, reporter: Reporter) -> _Search:
    """Read, split and tokenise; look at all that can be wrong with the input before anything is written."""
    resume, eval_steps = config.output.resume, config.training.eval_steps
    if resume:
        lock.take()
        config = same_settings(config, folder, command="tune")
    identity = Identity(folder, resume=resume)

    reporter.stage("Data")
    splits = prepare(config.data, seed=config.output.seed)
    identity.check_data(data_hashes(splits), {name: len(pairs) for name, pairs in splits.pairs.items()})
    plan = make_plan(config.training, len(splits.train), method=config.adapter.method, init=config.adapter.init)
    stages.report_splits(splits, reporter)

    reporter.stage("Base model")
    keep_freed_memory()
    four_bit = config.model.memory == "low"
    encoder = stages.load(config.model, reporter, four_bit=four_bit, master_weights=config.adapter.trains_weights)
    identity.check_base(encoder)
    if (changed := identity.check_environment(environment(encoder.device, encoder.source.precision))) is not None:
        reporter.warn(changed)
    check_trainable(encoder, config.adapter)
    if config.training.optimizer == "adamw8bit":
        check_8bit(encoder.device)
    config, _ = resolve(config, plan, encoder)
    config = replace(config, training=replace(config.training, eval_steps=eval_steps))  # each trial has its own
    dials = search_space(config, len(splits.train), usable_adapter=partial(_is_usable, encoder))
    config = replace(config, tuning=replace(config.tuning, dials=tuple(dial.name for dial in dials)))
    texts = stages.tokenize(encoder, splits.collection, reporter)
    dev = stages.dev_task(splits, size=config.training.dev_corpus, seed=config.output.seed)
    if not resume:
        folder.create()
        lock.take()
        folder.check(resume=False)  # another run may have been there in the meantime
    write_text(folder.config, to_toml(config))
    write_json(folder.fingerprint, identity.now)
    write_splits(splits, folder.splits)
    study = Study(folder.journal, dials, seed=config.output.seed, finish_all=config.tuning.finish_all)
    for dial in dials:
        reporter.note(f"searched: {_described(dial)}")
    return _Search(config, folder, Material(splits, texts, dev), dials, study, stop, reporter)


@dataclass(frozen=True)
class _Search:
    """The trials, one after another. Requests to stop are held but for the trainings, so that files stay whole."""

    config: TuneConfig
    folder: SearchFolder
    material: Material
    dials: tuple[Dial, ...]
    study: Study
    stop: StopRequest
    reporter: Reporter

    def run(self) -> dict[str, Any]:
        """Train until all trials are done or the time is over."""
        goes_on = True
        while goes_on and self._has_time():
            if self.study.trials and len(self.study.repeats) < self.config.tuning.repeats:
                goes_on = self._repeat()
            elif len(self.study.trials) < self.config.tuning.trials:
                goes_on = self._try()
            else:
                break
            if goes_on:
                self._write()
        if not self.study.trials:
            raise TrainingInterrupted(
                f"--time-budget {self.config.tuning.time_budget}: over before the default recipe was trained once.",
                TrainingInterrupted.TIME_IS_UP,
            )
        return self._write()

    def _write(self) -> dict[str, Any]:
        summary = outcome.summarise(self.config, self.dials, self.study, dev_queries=len(self.material.dev.query_ids))
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
        """The next trial; returns whether it came to an end."""
        asked, number = self.study.ask(), len(self.study.trials)
        what = ": the default recipe" if number == 0 else ""
        self.reporter.stage(f"Trial {number + 1} of {self.config.tuning.trials}{what}")
        result = self._train(asked.values, self.config.output.seed, number, asked.is_hopeless)
        if result is not None:
            self.study.tell(asked, result)
        return result is not None

    def _repeat(self) -> bool:
        """The default recipe with another seed; returns whether it came to an end."""
        self.reporter.stage("The default recipe again, with another seed")
        seed = self.config.output.seed + 1 + len(self.study.repeats)
        result = self._train(self.study.trials[0].values, seed, None, lambda evaluation, metric: False)
        if result is not None:
            self.study.add_repeat(result)
        return result is not None

    def _train(self, values: Values, seed: int, number: int | None, is_hopeless: Watch) -> Trial | None:
        """One training and what came of it; None if the time was over in it."""
        self.reporter.note(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        dev, started = list[float](), time.monotonic()

        def watch(metric: float) -> None:
            dev.append(metric)
            with self.stop.held():
                hopeless = is_hopeless(len(dev) - 1, metric)
            if hopeless:
                raise _HopelessError

        progress, reason = Progress(), None
        state: Literal["finished", "pruned", "failed"] = "finished"
        try:
            progress = self._train_once(values, seed, watch)
        except (Stopped, TrainingInterrupted):
            self._stopped(number)
            return None
        except _HopelessError:
            state = "pruned"
            self.reporter.note("stopped: its best is below what half of the trials had reached by then")
        except (RuntimeError, MemoryError, RunError) as error:
            state, reason = "failed", _survivable(error, number)
            self.reporter.warn(f"this trial failed: {reason}")
        finally:
            shutil.rmtree(self.folder.scratch, ignore_errors=True)
            gc.collect()
            torch.cuda.empty_cache()
        return Trial(
            number=number,
            state=state,
            values=dict(values),
            seed=seed,
            metric=progress.best_metric if state == "finished" else None,
            dev=dev,
            steps=progress.step,
            best_step=progress.best_step,
            seconds=round(time.monotonic() - started, 3),
            reason=reason,
        )

    def _train_once(self, values: Values, seed: int, watch: Callable[[float], None]) -> Progress:
        config = with_values(self.config, values, seed=seed)
        with self.stop.at_once(reserve=EXIT_SECONDS):
            return train_once(
                config, self.material, self.folder.scratch, watch=watch, stop=self.stop, reporter=self.reporter
            )

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


def _is_usable(encoder: Encoder, adapter: AdapterConfig) -> bool:
    try:
        check_trainable(encoder, adapter)
    except ConfigError:
        return False
    return True


def _described(dial: Dial) -> str:
    if dial.choices:
        return f"{dial.name} among {', '.join(map(str, dial.choices))} (default {dial.default:g})"
    return f"{dial.name} from {dial.low:.4g} to {dial.high:.4g} (default {dial.default:.4g})"


def _kept(folder: RunFolder) -> str:
    return f"The trials that were over are kept in {folder.root}; --resume goes on with them."
