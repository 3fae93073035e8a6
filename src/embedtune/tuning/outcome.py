"""What came of a search so far: one summary, and the files that are made of it after every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from embedtune.config import OutputConfig
from embedtune.config.tuning import TuneConfig
from embedtune.config_file import to_toml
from embedtune.data.prepare import Splits
from embedtune.export.run_folder import write_text
from embedtune.report.search import build_page
from embedtune.tuning.folder import SearchFolder
from embedtune.tuning.records import Trial, to_lines
from embedtune.tuning.space import Dial, with_values
from embedtune.tuning.study import Study


def summarise(config: TuneConfig, dials: Sequence[Dial], study: Study, splits: Splits) -> dict[str, Any]:
    """Plain values for the terminal, the page and Python.

    Args:
        config: of the search.
        dials: what was searched.
        study: with the default recipe trained to its end.
        splits: whose dev split chose.
    """
    default, best = study.trials[0], best_trial(study.trials)
    again = [repeat.metric for repeat in study.repeats if repeat.metric is not None]
    values = [_metric(default), *again]
    graded, dev = splits.collection.graded, splits.dev
    return {
        "base_model": config.model.base,
        "metric": config.training.metric,
        "seed": config.output.seed,
        "task": "similarity" if graded else "retrieval",
        "dev_items": len(dev) if graded else len(np.unique(dev.query_ids)),
        "planned": config.tuning.trials,
        "dials": [asdict(dial) for dial in dials],
        "trials": [asdict(trial) for trial in study.trials],
        "repeats": [asdict(repeat) for repeat in study.repeats],
        "default": asdict(default),
        "best": asdict(best),
        "gain": _metric(best) - _metric(default),
        "noise": max(values) - min(values) if again else None,
        "importances": study.importances(),
    }


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The one with the highest dev metric; of equal ones the first."""
    return max((trial for trial in trials if trial.metric is not None), key=_metric)


def write(summary: Mapping[str, Any], config: TuneConfig, study: Study, folder: SearchFolder) -> None:
    """Write `trials.jsonl`, `best.toml` and `tune.html`, each whole."""
    write_text(folder.trials, to_lines([*study.trials, *study.repeats]))
    best = with_values(config, summary["best"]["values"])
    write_text(folder.best, to_toml(replace(best, output=replace(best.output, out=OutputConfig().out))))
    write_text(folder.page, build_page(summary, folder.root))


def _metric(trial: Trial) -> float:
    assert trial.metric is not None
    return trial.metric
