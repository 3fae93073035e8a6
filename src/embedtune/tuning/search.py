"""A search for better settings, top to bottom: data, base model, trials, what came of them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from embedtune import stages
from embedtune.config import AdapterConfig
from embedtune.config.tuning import TuneConfig
from embedtune.config_file import to_toml
from embedtune.data.fingerprint import data_hashes
from embedtune.data.prepare import prepare, write_splits
from embedtune.durations import parse_seconds
from embedtune.endings import clear_ending, clear_errors
from embedtune.errors import ConfigError
from embedtune.export.run_folder import RunFolder, RunLock, write_json, write_text
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import check_trainable
from embedtune.models.encoder import Encoder
from embedtune.progress import Reporter, SilentReporter
from embedtune.report.results import environment
from embedtune.resolving import resolve
from embedtune.resuming import Identity, same_settings
from embedtune.training.kinds import run_plan
from embedtune.training.objective import check_loss
from embedtune.training.optim import check_8bit
from embedtune.training.plan import make_plan
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
    """Read, split and tokenise; look at all that can be wrong with the input before anything is written."""
    resume = config.output.resume
    if resume:
        lock.take()
        config = same_settings(config, folder, command="tune")
    identity = Identity(folder, resume=resume)

    reporter.stage("Data")
    splits = prepare(config.data, seed=config.output.seed)
    identity.check_data(data_hashes(splits), {name: len(pairs) for name, pairs in splits.pairs.items()})
    if splits.collection.graded:
        raise ConfigError(
            "embedtune tune searches settings for questions and passages, and these pairs are graded.\n"
            "Type:  embedtune train   with them, or --score-column none."
        )
    given = config.training
    make_plan(given, len(splits.train))  # says what can't be planned, before the model is loaded
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
    check_loss(config.loss, encoder, splits.train)
    plan = run_plan(config, len(splits.train), width=encoder.width, graded=False)
    config, _ = resolve(config, plan, encoder)
    own = ("eval_steps", "mined_lr", "mined_batch_size")  # each trial has its own
    config = replace(config, training=replace(config.training, **{name: getattr(given, name) for name in own}))
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
    return Trials(config, folder, Material(splits, texts, dev), dials, study, stop, reporter)


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
