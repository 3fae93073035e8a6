"""Optuna's part in a search: what to try next, whether to go on with it, and the journal of what was tried.

The journal is a file of JSON lines, so a search can go on with it and Optuna's dashboard can show it. The sampler
starts anew for each trial, from the run's seed and the number of trials that are over: a search that was stopped and
resumed tries what it would have tried without the stop.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from embedtune.errors import MissingExtraError, OutputError, brief
from embedtune.tuning.records import Trial
from embedtune.tuning.space import Dial, Values, default_values

try:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.pruners import BasePruner, MedianPruner, NopPruner
    from optuna.samplers import TPESampler
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise MissingExtraError("optuna", extra="tune", purpose="embedtune tune") from error

NAME = "embedtune"
RANDOM_TRIALS = 5
"""Trials before the sampler learns from them (Bergstra et al. 2011, TPE)."""
TRIALS_BEFORE_PRUNING = 4
"""Trained to their end before one is held against their median (Golovin et al. 2017)."""
TRIALS_FOR_IMPORTANCES = 5
"""Trained to their end; what mattered can't be told from fewer."""
BEST_SHARE = 0.25
"""Of the trials: what tells their values from those of all trials is what mattered."""
RESULT, REPEATS = "result", "repeats"


class Study:
    """The trials of one search. Whoever uses it holds the lock of its folder."""

    def __init__(self, journal: Path, dials: tuple[Dial, ...], *, seed: int, finish_all: bool) -> None:
        """Open the journal, or begin it.

        Raises:
            OutputError: it holds something else.
        """
        self._dials, self._seed = dials, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _cut_off_half_a_line(journal)
        pruner: BasePruner = (
            NopPruner() if finish_all else MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING, n_warmup_steps=1)
        )
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_NoLock(str(journal))))
            self._study = optuna.create_study(
                storage=storage, study_name=NAME, direction="maximize", load_if_exists=True, pruner=pruner
            )
            self.trials: list[Trial] = self._over()
            self.repeats = [Trial(**repeat) for repeat in self._study.user_attrs.get(REPEATS, [])]
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise OutputError(
                f"{journal} can't be read, so nothing tells what was tried: {brief(str(error), 200)}\n"
                "Leave --resume out and give another --out to search anew."
            ) from error
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)  # of a process that was stopped in it

    def ask(self) -> Asked:
        """What to try next: the default recipe first."""
        start = np.random.SeedSequence([self._seed, len(self.trials)]).generate_state(1)
        self._study.sampler = TPESampler(seed=int(start[0]), n_startup_trials=RANDOM_TRIALS)
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not self.trials and not waiting:
            self._study.enqueue_trial(dict(default_values(self._dials)))
        trial = self._study.ask()
        return Asked(trial, {dial.name: _suggest(trial, dial) for dial in self._dials})

    def tell(self, asked: Asked, result: Trial) -> None:
        """Note what came of it; one that failed counts as worse than all others."""
        trial = asked.trial
        trial.set_user_attr(RESULT, asdict(result))
        if result.metric is not None:
            self._study.tell(trial, result.metric)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        self.trials = self._over()

    def add_repeat(self, result: Trial) -> None:
        """Note a repeat of the default recipe, which nothing learns from."""
        self.repeats = [*self.repeats, result]
        self._study.set_user_attr(REPEATS, [asdict(repeat) for repeat in self.repeats])

    def importances(self) -> dict[str, float]:
        """How much each dial tells the best quarter of the trials from all (PED-ANOVA, Watanabe et al. 2023), as shares
        of 1, the largest first; empty if there are too few trials or nothing tells them apart."""
        finished = [trial for trial in self.trials if trial.state == "finished"]
        if len(finished) < TRIALS_FOR_IMPORTANCES or len({trial.metric for trial in finished}) == 1:
            return {}
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(self._study, evaluator=evaluator)
        return found if all(map(math.isfinite, found.values())) else {}

    def _over(self) -> list[Trial]:
        """Trials that were told; those that a stop ended are none."""
        over = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [_record(number, trial) for number, trial in enumerate(over)]


class Asked:
    """A trial that is under way."""

    def __init__(self, trial: optuna.trial.Trial, values: Values) -> None:
        self.trial, self.values = trial, values

    def is_hopeless(self, evaluation: int, metric: float) -> bool:
        """Note the dev metric at an evaluation, counted from 0; whether its best is below the others' median there."""
        self.trial.report(metric, evaluation)
        return self.trial.should_prune()


def _suggest(trial: optuna.trial.Trial, dial: Dial) -> float:
    if dial.choices:
        chosen: int = trial.suggest_categorical(dial.name, dial.choices)
        return chosen
    return trial.suggest_float(dial.name, dial.low, dial.high, log=True)


def _record(number: int, trial: FrozenTrial) -> Trial:
    result: Mapping[str, Any] = trial.user_attrs[RESULT]
    return Trial(**{**result, "number": number})


def _cut_off_half_a_line(journal: Path) -> None:
    """What a killed process, or a full disk, left unfinished at the end; Optuna would refuse the whole file."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())


class _NoLock(JournalFileOpenLock):
    """The folder's own lock is held. Optuna's would outlive a killed process, and be waited for."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
