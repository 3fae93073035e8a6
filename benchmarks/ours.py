"""embedtune's side: its own loader, adapter, objective and step loop, on given batches.

Shapes: `B` rows of a batch, `U` its texts (questions, then passages), `E` embedding size.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.agreement import fill_adapter
from benchmarks.dev import METRIC, Curve, read_dev
from benchmarks.jobs import OURS, EncodeJob, QualityJob, TrainJob
from benchmarks.measure import StepClock, held_bytes, held_weights, now, peak_bytes, reset_peak
from benchmarks.records import Agreement, EncodeMeasurement, QualityMeasurement, TrainMeasurement
from benchmarks.steps import given_objective, run_steps, tokens_of, training_config
from embedtune.config import AdapterConfig, ModelConfig
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import make_trainable, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.load import load_encoder
from embedtune.training.batch import batch_tokens
from embedtune.training.budget import choose_micro_batch
from embedtune.training.contrastive import ContrastiveObjective


class _TargetReached(Exception):
    """Ends the training."""


def agree_train(runner: str, job: TrainJob, embeddings: Path) -> Agreement:
    """Embeddings and loss of the first batch with a random adapter, nothing dropped."""
    encoder = _adapted(runner, job)
    fill_adapter(encoder.named_parameters(), seed=job.seed)
    objective = given_objective(encoder, job.batches, scale=job.scale)
    encoder.eval()
    rows_B = np.arange(job.batch_size)
    _fit_memory(objective, runner, job)
    with torch.inference_mode():
        loss, tokens = objective(rows_B)
    embedded = [encoder.embed_all(table, rows_B) for table in (objective.query_tokens, objective.passage_tokens)]
    np.save(embeddings, torch.cat(embedded).cpu().numpy())
    return Agreement(
        runner=runner,
        precision=encoder.source.precision,
        embeddings=str(embeddings),
        loss=loss.item(),
        tokens=tokens,
        trainable_parameters=trainable_parameters(encoder)[0],
        weights=held_weights(encoder),
    )


def time_train(runner: str, job: TrainJob) -> TrainMeasurement:
    """Train on the batches with embedtune's own step loop."""
    keep_freed_memory()
    encoder = _adapted(runner, job)
    device = encoder.device
    loaded = held_bytes(device)
    started = time.perf_counter()
    objective = given_objective(encoder, job.batches, scale=job.scale)
    data_seconds = (time.perf_counter() - started) / (len(objective.pairs) // job.batch_size)
    _fit_memory(objective, runner, job)
    reset_peak(device)
    clock = StepClock(device, warmup=job.warmup)
    progress = run_steps(encoder, objective, training_config(job), clock, method=job.method, seed=job.seed)
    return TrainMeasurement(
        runner=runner,
        precision=encoder.source.precision,
        step_seconds=clock.step_seconds(),
        data_seconds=data_seconds,
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(device),
        mean_loss=sum(progress.losses) / len(progress.losses),
        weights=held_weights(encoder),
    )


def time_quality(runner: str, job: QualityJob) -> QualityMeasurement:
    """Train until the dev metric is reached, with embedtune's own step loop, its tokenising included."""
    keep_freed_memory()
    encoder = _adapted(runner, job.train)
    dev = read_dev(job.dev)
    curve = Curve(
        encoder.device, lambda: dev.ndcg(_encode(encoder, dev.queries), _encode(encoder, dev.passages)), job.target
    )
    clock = StepClock(encoder.device)

    def evaluate() -> dict[str, float]:
        value = curve.measure(clock.steps)
        if curve.reached:
            raise _TargetReached
        return {METRIC: value}

    curve.start()
    objective = given_objective(encoder, job.train.batches, scale=job.train.scale)
    _fit_memory(objective, runner, job.train)
    config = replace(training_config(job.train), eval_steps=job.eval_steps)
    with suppress(_TargetReached):
        run_steps(encoder, objective, config, clock, method=job.train.method, seed=job.train.seed, evaluate=evaluate)
    return QualityMeasurement(
        runner=runner,
        precision=encoder.source.precision,
        weights=held_weights(encoder),
        steps=curve.steps,
        seconds=curve.seconds,
        ndcg=curve.values,
    )


def agree_encode(runner: str, job: EncodeJob, texts: list[str], embeddings: Path) -> Agreement:
    """Embeddings of the texts."""
    encoder = load(runner, job)
    np.save(embeddings, _encode(encoder, texts).cpu().numpy())
    return Agreement(
        runner=runner,
        precision=encoder.source.precision,
        embeddings=str(embeddings),
        weights=held_weights(encoder),
    )


def time_encode(runner: str, job: EncodeJob, warmup: list[str], texts: list[str]) -> EncodeMeasurement:
    """Embed the texts, after those of the warm-up."""
    keep_freed_memory()
    encoder = load(runner, job)
    _encode(encoder, warmup)
    loaded = held_bytes(encoder.device)
    reset_peak(encoder.device)
    started = now(encoder.device)
    _encode(encoder, texts)
    return EncodeMeasurement(
        runner=runner,
        precision=encoder.source.precision,
        texts=len(texts),
        seconds=now(encoder.device) - started,
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(encoder.device),
    )


def load(runner: str, job: TrainJob | EncodeJob) -> Encoder:
    """The encoder in the runner's precision, without an adapter and not in 4 bits."""
    return load_encoder(_model_config(runner, job))


def load_trainable(model: ModelConfig, adapter: AdapterConfig, *, seed: int) -> Encoder:
    """In the order of `pipeline.train`: with `--memory low` the model is loaded in 4 bits, else it becomes so here."""
    low_memory = model.memory == "low"
    encoder = load_encoder(model, four_bit=low_memory, master_weights=adapter.trains_weights)
    torch.manual_seed(seed)
    if adapter.method == "qlora" and not low_memory:
        from embedtune.models.quantize import quantize  # needs bitsandbytes

        encoder.notes.append(quantize(encoder, low_memory=False))
    make_trainable(encoder, adapter)
    return encoder


def _adapted(runner: str, job: TrainJob) -> Encoder:
    adapter = AdapterConfig(method=job.method, rank=job.rank, alpha=job.alpha)
    return load_trainable(_model_config(runner, job), adapter, seed=job.seed)


def _fit_memory(objective: ContrastiveObjective, runner: str, job: TrainJob) -> None:
    """As `trainer.build_trainer` does: no more goes through the encoder at a time than fits, or is asked for."""
    if OURS[runner].cached and job.mini_batch is not None:
        objective.micro_batch.tokens = round(job.mini_batch * objective.passage_tokens.lengths_N.mean())
        return
    pairs, texts, size = objective.pairs, (objective.query_tokens, objective.passage_tokens), job.batch_size
    batches = (np.arange(row, min(row + size, len(pairs))) for row in range(0, len(pairs), size))
    largest = max(batch_tokens(pairs, rows, *texts) for rows in batches)
    objective.micro_batch.tokens = choose_micro_batch(objective.encoder, pairs, *texts, largest=largest)


def _model_config(runner: str, job: TrainJob | EncodeJob) -> ModelConfig:
    return ModelConfig(
        base=job.base,
        device=job.device,
        precision=OURS[runner].precision,
        max_length=job.max_length,
        memory="low" if OURS[runner].low_memory else "auto",
    )


def _encode(encoder: Encoder, texts: list[str]) -> Tensor:
    return encoder.embed_all(tokens_of(encoder, texts))
