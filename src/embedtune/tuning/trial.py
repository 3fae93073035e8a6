"""One training of a search, on data that was read, split and tokenised once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from embedtune.config import TrainConfig
from embedtune.data.prepare import Splits
from embedtune.data.tokens import Texts
from embedtune.export.run_folder import RunFolder
from embedtune.loading import load_base
from embedtune.measuring import DevSet
from embedtune.phases import MinedPhases, Words
from embedtune.progress import Reporter, SilentReporter
from embedtune.trainer import build_trainer, make_ready, run_plan
from embedtune.training.advice import Advice
from embedtune.training.checkpoint import Progress
from embedtune.training.selection import Measured
from embedtune.training.signals import StopRequest

Watch = Callable[[int, float], None]
"""Told the step of an evaluation and its dev metric; what it raises ends the training."""


@dataclass(frozen=True)
class Material:
    """What all trainings of a search share. The test split has no part in any of them."""

    splits: Splits
    texts: Texts
    dev: DevSet
    """Asks the same for every seed, so that only the training differs."""
    advice: Advice
    words: Words = lambda: None
    """What may teach where negatives are mined, from `word_teacher`."""


def train_once(
    config: TrainConfig,
    material: Material,
    folder: Path,
    *,
    watch: Watch,
    stop: StopRequest,
    reporter: Reporter,
) -> Progress:
    """Train by this config, from the base model as it is on the disk: nothing of an earlier training is left in it.

    Args:
        config: of this training; its seed is that of the data order and the adapter's start.
        material: what to train and to evaluate on.
        folder: for checkpoints and logs.
        watch: is called at each evaluation.
        stop: the request of the search.
        reporter: is told how the training goes.

    Returns:
        How it went; `best_metric` is the dev metric that counts.

    Raises:
        RunError, TrainingInterrupted: as `Trainer.run`.
    """
    splits, texts = material.splits, material.texts
    encoder = load_base(config, SilentReporter())
    make_ready(encoder, config, SilentReporter())
    trainer = build_trainer(
        encoder,
        splits,
        texts,
        config.training,
        out=folder,
        loss=config.loss,
        plan=run_plan(config, splits, encoder),
        advice=material.advice,
        dev=material.dev,
        seed=config.output.seed,
        reporter=reporter,
    )
    phases = MinedPhases(
        trainer, encoder, splits, texts, config.mining, RunFolder(folder), words=material.words, reporter=reporter
    )
    trainer = phases.trainer

    plan, metric = trainer.plan, config.training.metric
    evaluated = filter(plan.evaluates_at, range(plan.steps + 1))

    def evaluate() -> Measured:
        found = trainer.evaluate()
        watch(next(evaluated), found.metrics[metric])
        return found

    return replace(trainer, evaluate=evaluate).run(resume=False, stop=stop)
