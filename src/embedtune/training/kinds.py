"""Settings that go with graded pairs, and those that go with questions and passages."""

from __future__ import annotations

from dataclasses import replace

from embedtune.config import GRADED_METRIC, LossConfig, TrainConfig, TrainingConfig
from embedtune.errors import ConfigError


def settings_for(config: TrainingConfig, loss: LossConfig, *, graded: bool) -> tuple[TrainingConfig, LossConfig]:
    """The settings with the dev metric and the loss that fit the data, where they are left open.

    Args:
        config: optimiser and steps.
        loss: what a step makes smaller.
        graded: whether the data are graded pairs.

    Raises:
        ConfigError: a setting has no meaning for such data.
    """
    if not graded:
        _refuse(loss.loss == "cosent", "--loss cosent", "the pairs have no grades", "--score-column NAME")
        _refuse(config.metric == GRADED_METRIC, f"--metric {config.metric}", "the pairs have no grades", "another one")
        return config, replace(loss, loss="contrastive")
    reason, alternative = "the pairs are graded, so none is right or wrong", "--score-column none"
    metric = config.metric if config.metric != TrainingConfig.metric else GRADED_METRIC
    _refuse(loss.loss == "contrastive", "--loss contrastive", reason, alternative)
    _refuse(metric != GRADED_METRIC, f"--metric {metric}", reason, f"--metric {GRADED_METRIC}")
    _refuse(loss.both_directions, "--both-directions", reason, alternative)
    _refuse(bool(config.mined_epochs), f"--mined-epochs {config.mined_epochs}", reason, alternative)
    for option, value in (("matryoshka", loss.matryoshka), ("guide", loss.guide), ("learn-scale", loss.learn_scale)):
        _refuse(bool(value), f"--{option}", "CoSENT has none", alternative)
    _refuse(loss.distill != "none", f"--distill {loss.distill}", reason, alternative)
    _refuse(bool(loss.bm25_weight), f"--bm25-weight {loss.bm25_weight}", reason, alternative)
    _refuse(config.passage_once, "--passage-once", reason, alternative)
    return replace(config, metric=metric), replace(loss, loss="cosent")


def mines(config: TrainConfig, *, graded: bool) -> bool:
    """Whether there can be phases with mined negatives: of questions and passages, without a teacher's scores.

    Raises:
        ConfigError: such phases were asked for beside a teacher, who has not scored what is mined in mid-run.
    """
    distills = config.loss.distill != "none"
    if distills and config.training.mined_epochs:
        raise ConfigError(
            f"--mined-epochs {config.training.mined_epochs:g} mines in the middle of the run, and --distill "
            f"{config.loss.distill} needs a teacher's scores before it.\n"
            "Type:  embedtune mine TRAIN --judge CROSS_ENCODER --out mined.jsonl   first, then train on that file, "
            "which has the judge's scores, without --mined-epochs."
        )
    adds_none = config.training.mined_in == "shuffled" and config.mining.added == 0
    return not (adds_none or graded or distills)


def _refuse(condition: bool, option: str, reason: str, alternative: str) -> None:
    if condition:
        raise ConfigError(f"{option}: {reason}.\nLeave it out, or type:  {alternative}")
