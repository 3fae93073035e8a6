"""embedtune's side: its own loader, adapter, objective and step loop, on given batches.

Shapes: `B` rows of a batch, `U` its texts (questions, then passages), `E` embedding size.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.agreement import fill_adapter
from benchmarks.jobs import EncodeJob, TrainJob
from benchmarks.measure import StepClock, held_bytes, now, peak_bytes, reset_peak
from benchmarks.records import Agreement, EncodeMeasurement, TrainMeasurement
from benchmarks.steps import given_objective, run_steps, tokens_of
from embedtune.config import AdapterConfig, ModelConfig, TrainingConfig
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import attach_adapter, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import PrecisionName
from embedtune.models.load import load_encoder

PRECISIONS: dict[str, PrecisionName] = {"embedtune": "auto", "embedtune-fp32": "fp32"}


def agree_train(runner: str, job: TrainJob, embeddings: Path) -> Agreement:
    """Embeddings and loss of the first batch with a random adapter, nothing dropped."""
    encoder, precision = load(runner, job)
    adapted = _adapted(encoder, job)
    fill_adapter(adapted.named_parameters(), seed=job.seed)
    objective = given_objective(encoder, job.batches, scale=job.scale)
    encoder.eval()
    rows_B = np.arange(job.batch_size)
    texts_U = [table[int(row)] for table in (objective.query_tokens, objective.passage_tokens) for row in rows_B]
    with torch.inference_mode():
        loss, tokens = objective(rows_B)
        np.save(embeddings, encoder.embed(texts_U).cpu().numpy())
    return Agreement(
        runner=runner,
        precision=precision,
        embeddings=str(embeddings),
        loss=loss.item(),
        tokens=tokens,
        trainable_parameters=trainable_parameters(adapted)[0],
    )


def time_train(runner: str, job: TrainJob) -> TrainMeasurement:
    """Train on the batches with embedtune's own step loop."""
    keep_freed_memory()
    encoder, precision = load(runner, job)
    device = encoder.device
    _adapted(encoder, job)
    loaded = held_bytes(device)
    reset_peak(device)
    started = time.perf_counter()
    objective = given_objective(encoder, job.batches, scale=job.scale)
    data_seconds = (time.perf_counter() - started) / (len(objective.pairs) // job.batch_size)
    config = TrainingConfig(lr=job.lr, batch_size=job.batch_size, weight_decay=job.weight_decay, scale=job.scale)
    clock = StepClock(device)
    progress = run_steps(encoder, objective, config, clock, method="lora", seed=job.seed)
    return TrainMeasurement(
        runner=runner,
        precision=precision,
        step_seconds=clock.step_seconds(),
        data_seconds=data_seconds,
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(device),
        mean_loss=sum(progress.losses) / len(progress.losses),
    )


def agree_encode(runner: str, job: EncodeJob, texts: list[str], embeddings: Path) -> Agreement:
    """Embeddings of the texts."""
    encoder, precision = load(runner, job)
    np.save(embeddings, _encode(encoder, texts).numpy())
    return Agreement(runner=runner, precision=precision, embeddings=str(embeddings))


def time_encode(runner: str, job: EncodeJob, warmup: list[str], texts: list[str]) -> EncodeMeasurement:
    """Embed the texts, after those of the warm-up."""
    encoder, precision = load(runner, job)
    _encode(encoder, warmup)
    loaded = held_bytes(encoder.device)
    reset_peak(encoder.device)
    started = now(encoder.device)
    _encode(encoder, texts)
    return EncodeMeasurement(
        runner=runner,
        precision=precision,
        texts=len(texts),
        seconds=now(encoder.device) - started,
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(encoder.device),
    )


def load(runner: str, job: TrainJob | EncodeJob) -> tuple[Encoder, str]:
    """The encoder in the runner's precision, and the precision's name."""
    config = ModelConfig(base=job.base, device=job.device, precision=PRECISIONS[runner], max_length=job.max_length)
    encoder = load_encoder(config)
    return encoder, encoder.source.precision


def _adapted(encoder: Encoder, job: TrainJob) -> PeftModel:
    torch.manual_seed(job.seed)
    return attach_adapter(encoder, AdapterConfig(rank=job.rank, alpha=job.alpha))


def _encode(encoder: Encoder, texts: list[str]) -> Tensor:
    return encoder.embed_all(tokens_of(encoder, texts))
