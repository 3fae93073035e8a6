"""A search for better settings, top to bottom: data, base model, trials, what came of them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from embedtune.beginnings import begin, claim, take_up
from embedtune.config import AdapterConfig, TrainingConfig
from embedtune.config.tuning import TuneConfig
from embedtune.durations import parse_seconds
from embedtune.endings import clear_ending, clear_errors
from embedtune.errors import ConfigError
from embedtune.export.run_folder import RunFolder, RunLock
from embedtune.loading import other_model, tokenize
from embedtune.measuring import dev_set
from embedtune.models.adapters import check_trainable
from embedtune.models.encoder import Encoder
from embedtune.phases import word_teacher
from embedtune.progress import Reporter, SilentReporter
from embedtune.training.advice import ask_advisers
from embedtune.training.random_state import same_bits
from embedtune.training.signals import StopRequest, stop_requests
from embedtune.tuning.folder import SearchFolder
from embedtune.tuning.space import Dial, search_space
from embedtune.tuning.study import Study
from embedtune.tuning.trial import Material
from embedtune.tuning.trials import Trials


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


def _prepare(config: TuneConfig, folder: SearchFolder, lock: RunLock, stop: StopRequest, reporter: Reporter) -> Trials:
    """All that the trials share; nothing is written until all that can be wrong with the input has been looked at."""
    resume = config.output.resume
    config = take_up(config, folder, lock, command="tune")
    begun = begin(config, folder, reporter)
    config, splits = _open_again(begun.config, config.training), begun.splits
    dials = search_space(config, len(splits.train), usable_adapter=partial(_is_usable, begun.encoder))
    config = replace(config, tuning=replace(config.tuning, dials=tuple(dial.name for dial in dials)))
    texts = tokenize(begun.encoder, splits.collection, reporter)
    claim(begun, config, folder, lock, resume=resume)
    study = Study(folder.journal, dials, seed=config.output.seed, finish_all=config.tuning.finish_all)
    for dial in dials:
        reporter.note(f"searched: {_described(dial)}")
    model = other_model(begun.encoder.source)
    advice = ask_advisers(splits, config.loss, model, folder=folder.root, reporter=reporter)
    if advice.keep is not None:
        advice.keep()
    dev = dev_set(splits, texts, config.training, seed=config.output.seed)
    words = word_teacher(splits, dev, weight=config.loss.bm25_weight, metric=config.training.metric)
    material = Material(splits, texts, dev, advice._replace(keep=None), words)
    return Trials(config, folder, material, dials, study, stop, reporter)


def _open_again(config: TuneConfig, given: TrainingConfig) -> TuneConfig:
    """The config with what follows from a dial, and is each trial's own, as it was given."""
    own = ("eval_steps", "mined_lr", "mined_batch_size", "mined_batches", "averaging", "schedule")
    return replace(config, training=replace(config.training, **{name: getattr(given, name) for name in own}))


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
