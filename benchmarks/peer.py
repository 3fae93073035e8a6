"""The peer's side: Sentence Transformers with a PEFT adapter, its own trainer, as its documentation shows it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from benchmarks.agreement import fill_adapter
from benchmarks.batches import flatten, read_batches
from benchmarks.jobs import EncodeJob, TrainJob
from benchmarks.measure import StepClock, held_bytes, now, peak_bytes, reset_peak
from benchmarks.records import Agreement, EncodeMeasurement, TrainMeasurement
from embedtune.models.families import encoder_linears

PRECISIONS = {"st-fp32": "fp32", "st-bf16": "bf16", "st-fp32-nodropout": "fp32"}


def agree_train(runner: str, job: TrainJob, embeddings: Path) -> Agreement:
    """Embeddings and loss of the first batch with a random adapter, nothing dropped."""
    with TemporaryDirectory() as folder:
        trainer = _trainer(runner, job, _adapted(runner, job), folder)
        model = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True).eval()
        fill_adapter(model.named_parameters(), seed=job.seed)
        batch = next(iter(trainer.get_train_dataloader()))
        features, _ = trainer.collect_features(batch)
        with torch.inference_mode():
            embedded = [model(dict(texts))["sentence_embedding"].float().cpu() for texts in features]
            loss, _ = trainer.compute_loss(model, batch, return_outputs=True)
    np.save(embeddings, torch.cat(embedded).numpy())
    return Agreement(
        runner=runner,
        precision=PRECISIONS[runner],
        embeddings=str(embeddings),
        loss=loss.item(),
        tokens=sum(int(texts["attention_mask"].sum()) for texts in features),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def time_train(runner: str, job: TrainJob) -> TrainMeasurement:
    """Train on the batches with `SentenceTransformerTrainer`."""
    model = _adapted(runner, job)
    device = torch.device(job.device)
    loaded = held_bytes(device)
    reset_peak(device)
    clock = StepClock(device)
    with TemporaryDirectory() as folder:
        trainer = _trainer(runner, job, model, folder)
        trainer.add_callback(_Steps(clock))
        output = trainer.train()
    return TrainMeasurement(
        runner=runner,
        precision=PRECISIONS[runner],
        step_seconds=clock.step_seconds(),
        data_seconds=clock.gap_seconds(),
        loaded_bytes=loaded,
        peak_bytes=peak_bytes(device),
        mean_loss=output.training_loss,
    )


def agree_encode(runner: str, job: EncodeJob, texts: list[str], embeddings: Path) -> Agreement:
    """Embeddings of the texts."""
    np.save(embeddings, _encode(_load_for_encoding(runner, job), texts))
    return Agreement(runner=runner, precision=PRECISIONS[runner], embeddings=str(embeddings))


def time_encode(runner: str, job: EncodeJob, warmup: list[str], texts: list[str]) -> EncodeMeasurement:
    """Embed the texts, after those of the warm-up."""
    model, device = _load_for_encoding(runner, job), torch.device(job.device)
    _encode(model, warmup)
    loaded = held_bytes(device)
    reset_peak(device)
    started = now(device)
    _encode(model, texts)
    return EncodeMeasurement(
        runner=runner,
        precision=PRECISIONS[runner],
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


def _given_batches(dataset: Any, **options: Any) -> DefaultBatchSampler:
    """The rows in the order given, so that the batches are the given ones."""
    return DefaultBatchSampler(SequentialSampler(dataset), **options)


def _load(base: str, max_length: int, device: str, dtype: torch.dtype) -> SentenceTransformer:
    model = SentenceTransformer(base, device=device, model_kwargs={"dtype": dtype})
    model.max_seq_length = max_length
    return model


def _load_for_encoding(runner: str, job: EncodeJob) -> SentenceTransformer:
    dtype = torch.bfloat16 if PRECISIONS[runner] == "bf16" else torch.float32
    return _load(job.base, job.max_length, job.device, dtype)


def _adapted(runner: str, job: TrainJob) -> SentenceTransformer:
    """The base in fp32 with an adapter; `bf16=True` computes in bf16 by autocast."""
    model = _load(job.base, job.max_length, job.device, torch.float32)
    if runner.endswith("-nodropout"):
        _switch_dropout_off(model)
    backbone = model.transformers_model
    assert backbone is not None
    torch.manual_seed(job.seed)
    model.add_adapter(
        LoraConfig(
            r=job.rank,
            lora_alpha=job.alpha,  # type: ignore[arg-type]  # PEFT divides it: any number will do
            lora_dropout=0.0,
            target_modules=encoder_linears(backbone),
            task_type=TaskType.FEATURE_EXTRACTION,
        )
    )
    return model


def _switch_dropout_off(model: nn.Module) -> None:
    """Layers, and the probabilities that newer architectures hand to their attention functions."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module) and isinstance(vars(module)["attention_dropout"], float):
            vars(module)["attention_dropout"] = 0.0


def _trainer(runner: str, job: TrainJob, model: SentenceTransformer, folder: str) -> SentenceTransformerTrainer:
    anchors, positives = zip(*flatten(read_batches(job.batches)), strict=True)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=job.batch_size,
        batch_sampler=_given_batches,
        learning_rate=job.lr,
        weight_decay=job.weight_decay,
        lr_scheduler_type="constant",
        bf16=PRECISIONS[runner] == "bf16",
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
        train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
        loss=MultipleNegativesRankingLoss(model, scale=job.scale),
    )


def _encode(model: SentenceTransformer, texts: list[str]) -> np.ndarray[Any, Any]:
    """`encode` with its default batch size, no prompt, no progress bar; bf16 embeddings come back as fp32."""
    vectors = model.encode(texts, prompt="", show_progress_bar=False, convert_to_tensor=True)
    return vectors.float().cpu().numpy()
