"""The trainings of a run, one after another from the same weights, and the mean of what they came to."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedtune.atomic import tidy
from embedtune.config import MiningConfig
from embedtune.data.prepare import Splits
from embedtune.data.tokens import Texts
from embedtune.errors import TrainingInterrupted
from embedtune.export.run_folder import RunFolder
from embedtune.models.adapters import trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.soup import has_mean, take_mean
from embedtune.phases import MinedPhases, Words
from embedtune.progress import Reporter
from embedtune.training.checkpoint import Checkpoints, Progress
from embedtune.training.loop import Trainer
from embedtune.training.reached import Reached
from embedtune.training.signals import StopRequest
from embedtune.training.weights import set_weights, trainable_tensors


def train_members(
    trainer: Trainer,
    encoder: Encoder,
    splits: Splits,
    texts: Texts,
    mining: MiningConfig,
    folder: RunFolder,
    *,
    words: Words = lambda: None,
    resume: bool,
    stop: StopRequest,
    reporter: Reporter,
) -> tuple[Reached, list[dict[str, Any]]]:
    """Train as often as the plan says; the encoder ends with the mean of the weights that were best on the dev set.

    The first training is what a run with one does. The others see the pairs in other orders, and draw otherwise what
    is drawn. One of which no step was better than the start has no part in the mean.

    Args:
        trainer: of the first training, from `build_trainer`.
        encoder: that it trains.
        splits: from `prepare`.
        texts: the splits' texts, from `tokenize`.
        mining: what is mined between the phases.
        folder: of the run.
        words: what may teach where negatives are mined, from `word_teacher`.
        resume: go on from each training's newest checkpoint, if it has any; one that is over is not done again.
        stop: the request of the run.
        reporter: is told how it goes.

    Returns:
        What they came to, and what was mined for each of their phases with mined negatives.

    Raises:
        RunError, TrainingInterrupted: as `Trainer.run`.
    """
    count = trainer.plan.trainings
    parameters, mined = trainable_parameters(encoder), list[dict[str, Any]]()
    trainers, progress = [_member(trainer, number, folder) for number in range(count)], list[Progress]()
    start = dict[str, Tensor]()
    if count > 1:
        start = {name: tensor.to("cpu", copy=True) for name, tensor in trainable_tensors(trainer.model).items()}
    for number, member in enumerate(trainers):
        if number > 0:
            gc.collect()  # the moments of the one before
            set_weights(trainer.model, start)
            torch.manual_seed(member.seed)
        if count > 1:
            reporter.note(f"training {number + 1} of {count}")
        place = folder.training(number)
        tidy(place.splits)
        phases = MinedPhases(member, encoder, splits, texts, mining, place, words=words, reporter=reporter)
        try:
            progress.append(phases.trainer.run(resume=resume, stop=stop))
        except TrainingInterrupted as stopped:
            which = f"training {number + 1} of {count}: " if count > 1 else ""
            raise TrainingInterrupted(f"{which}{stopped}", stopped.exit_code) from stopped
        mined += phases.facts(progress[-1].step)
    kept = _keep(trainers, progress, encoder, reporter) if count > 1 else [0] * (progress[0].best_step > 0)
    return Reached(members=progress, kept=kept, trainable=parameters[0], total=parameters[1]), mined


def _member(trainer: Trainer, number: int, folder: RunFolder) -> Trainer:
    """The trainer of one of a run's trainings, counted from 0."""
    if number == 0:
        return trainer
    place = folder.training(number)
    return replace(
        trainer,
        # Not the seeds next to the run's: a run with one of these would have a training in common with this one.
        seed=int(np.random.SeedSequence((trainer.seed, number)).generate_state(1)[0]),
        checkpoints=Checkpoints(place.checkpoints, keep_last=trainer.checkpoints.keep_last),
        log_folder=place.root,
        keep=None,
    )


def _keep(trainers: Sequence[Trainer], progress: Sequence[Progress], encoder: Encoder, reporter: Reporter) -> list[int]:
    """Give the encoder the mean, or the best where there is none; returns which of the trainings have a part in it."""
    better = [number for number, member in enumerate(progress) if member.best_step > 0]
    reached = ", ".join(f"{member.best_metric:.4f}" for member in progress)
    reporter.note(f"best dev {trainers[0].config.metric} of the {len(progress)} trainings: {reached}")
    if left_out := [str(number + 1) for number in range(len(progress)) if number not in better]:
        reporter.note(f"left out, as no step was better on dev than the start: training {', '.join(left_out)}")
    if len(better) > 1 and not has_mean(encoder.adapter):
        better = [max(better, key=lambda number: progress[number].best_metric)]
        reporter.note(f"an adapter like this (DoRA) has no mean, so training {better[0] + 1} is kept, the best on dev")
    model = trainers[0].model

    def best_weights() -> Iterator[Mapping[str, Tensor]]:
        for number in better:
            trainers[number].checkpoints.load_weights(progress[number].best_step, model)
            yield trainable_tensors(model)

    if len(better) > 1:
        take_mean(model, encoder.adapter, best_weights())
        reporter.note(f"the weights are now the mean of {len(better)} trainings")
    elif better:
        next(best_weights())
    return better
