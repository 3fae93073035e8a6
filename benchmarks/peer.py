"""The peers' side: Sentence Transformers' own trainer on given batches, whoever loaded the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState

from benchmarks.agreement import fill_adapter
from benchmarks.batches import Row, flatten, read_batches
from benchmarks.dev import Curve, read_dev
from benchmarks.jobs import PEERS, EncodeJob, QualityJob, TrainJob
from benchmarks.measure import StepClock, held_bytes, held_weights, now, peak_bytes, reset_peak
from benchmarks.peer_models import load_adapted, load_for_encoding, switch_dropout_off
from benchmarks.records import Agreement, EncodeMeasurement, QualityMeasurement, TrainMeasurement
from benchmarks.steps import training_config
from embedtune.training.plan import make_plan

LONG_RUN = 1_000_000
"""Steps of a run that unsloth finds worth compiling for; it is stopped when the batches are used up."""


def agree_train(runner: str, job: TrainJob, embeddings: Path) -> Agreement:
    """Embeddings and loss of the first batch with a random adapter, nothing dropped.

    In training mode, in which alone unsloth unpads.
    """
    with TemporaryDirectory() as folder:
        trainer = _trainer(runner, job, load_adapted(runner, job), folder)
        switch_dropout_off(trainer.model)
        model = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True).train()
        fill_adapter(model.named_parameters(), seed=job.seed)
        batch = next(iter(trainer.get_train_dataloader()))
        features, _ = trainer.collect_features(batch)
        with torch.no_grad():
            embedded = [model(dict(texts))["sentence_embedding"].float().cpu() for texts in features]
            loss, _ = trainer.compute_loss(model, batch, return_outputs=True)
    np.save(embeddings, torch.cat(embedded).numpy())
    return Agreement(
        runner=runner,
        precision=PEERS[runner].precision,
        embeddings=str(embeddings),
        loss=loss.item(),
        tokens=sum(map(_tokens, features)),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        weights=held_weights(model),
    )


def time_train(runner: str, job: TrainJob) -> TrainMeasurement:
    """Train on the batches with `SentenceTransformerTrainer`."""
    model = load_adapted(runner, job)
    device = torch.device(job.device)
    loaded = held_bytes(device)
    reset_peak(device)
    clock = StepClock(device, warmup=job.warmup)
    with TemporaryDirectory() as folder:
        trainer = _trainer(runner, job, model, folder)
        trainer.add_callback(_Steps(clock))
        output = trainer.train()
    return TrainMeasurement(
        runner=runner,
        precision=PEERS[runner].precision,
        step_seconds=clock.step_seconds(),
        data_seconds=clock.gap_seconds(),
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(device),
        mean_loss=output.training_loss,
        weights=held_weights(model),
    )


def time_quality(runner: str, job: QualityJob) -> QualityMeasurement:
    """Train until the dev metric is reached with `SentenceTransformerTrainer`; the model's own `encode` embeds."""
    model, dev = load_adapted(runner, job.train), read_dev(job.dev)
    curve = Curve(
        torch.device(job.device),
        lambda: dev.ndcg(_encode(model, dev.queries), _encode(model, dev.passages)),
        job.target,
    )
    with TemporaryDirectory() as folder:
        trainer = _trainer(runner, job.train, model, folder)
        trainer.add_callback(_Evaluations(curve, every=job.eval_steps))
        trainer.train()
    return QualityMeasurement(
        runner=runner,
        precision=PEERS[runner].precision,
        weights=held_weights(model),
        steps=curve.steps,
        seconds=curve.seconds,
        ndcg=curve.values,
    )


def agree_encode(runner: str, job: EncodeJob, texts: list[str], embeddings: Path) -> Agreement:
    """Embeddings of the texts."""
    model = load_for_encoding(runner, job)
    np.save(embeddings, _encode(model, texts).float().cpu().numpy())
    return Agreement(
        runner=runner,
        precision=PEERS[runner].precision,
        embeddings=str(embeddings),
        weights=held_weights(model),
    )


def time_encode(runner: str, job: EncodeJob, warmup: list[str], texts: list[str]) -> EncodeMeasurement:
    """Embed the texts, after those of the warm-up."""
    model, device = load_for_encoding(runner, job), torch.device(job.device)
    _encode(model, warmup)
    loaded = held_bytes(device)
    reset_peak(device)
    started = now(device)
    _encode(model, texts).float().cpu()
    return EncodeMeasurement(
        runner=runner,
        precision=PEERS[runner].precision,
        texts=len(texts),
        seconds=now(device) - started,
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(device),
    )


class _Steps(TrainerCallback):
    """Tells the clock where the trainer's steps begin and end."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.end()


class _Evaluations(TrainerCallback):
    """Evaluates before the first step, every few steps and after the last one; stops once the target is reached."""

    def __init__(self, curve: Curve, *, every: int) -> None:
        self._curve, self._every = curve, every

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._measure(state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._measure(state, control)

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        if not self._curve.reached:  # else before the first step, and the trainer takes one all the same
            self._curve.measure(state.global_step)
        control.should_training_stop = control.should_training_stop or self._curve.reached


class _StopAfter(TrainerCallback):
    """Ends a long run after so many steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= self._steps:
            control.should_training_stop = True


def _trainer(runner: str, job: TrainJob, model: SentenceTransformer, folder: str) -> SentenceTransformerTrainer:
    rows = flatten(read_batches(job.batches))
    steps = len(rows) // job.batch_size
    plan = make_plan(replace(training_config(job), max_steps=steps), len(rows))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        max_steps=LONG_RUN if PEERS[runner].compiled else -1,
        per_device_train_batch_size=job.batch_size,
        batch_sampler=_given_batches,
        learning_rate=job.lr,
        weight_decay=job.weight_decay,
        lr_scheduler_type="constant_with_warmup" if job.schedule == "constant" else job.schedule,
        warmup_steps=plan.warmup_steps,
        bf16=PEERS[runner].precision == "bf16",
        use_cpu=job.device == "cpu",
        seed=job.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(rows),
        loss=_loss(model, job),
        callbacks=[_StopAfter(steps)],
    )


def _loss(model: SentenceTransformer, job: TrainJob) -> nn.Module:
    if job.mini_batch is None:
        return MultipleNegativesRankingLoss(model, scale=job.scale)
    return CachedMultipleNegativesRankingLoss(model, scale=job.scale, mini_batch_size=job.mini_batch)


def _dataset(rows: list[Row]) -> Dataset:
    anchors, positives = zip(*rows, strict=True)
    return Dataset.from_dict({"anchor": anchors, "positive": positives})


def _given_batches(dataset: Any, **options: Any) -> DefaultBatchSampler:
    """The rows in the order given, so that the batches are the given ones."""
    return DefaultBatchSampler(SequentialSampler(dataset), **options)


def _tokens(features: dict[str, Tensor]) -> int:
    """Padding not counted; flattened texts have none."""
    mask = features.get("attention_mask")
    return int(features["input_ids"].numel() if mask is None else mask.sum())


def _encode(model: SentenceTransformer, texts: list[str]) -> Tensor:
    """`encode` with its default batch size, no prompt, no progress bar."""
    return model.encode(texts, prompt="", show_progress_bar=False, convert_to_tensor=True)
