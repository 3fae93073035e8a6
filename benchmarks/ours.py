"""embedtune's side: its own loader, adapter, objective and step loop, on given batches.

Shapes: `B` rows of a batch, `U` its texts (questions, then passages), `E` embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.agreement import fill_adapter
from benchmarks.batches import flatten, read_batches
from benchmarks.jobs import EncodeJob, TrainJob
from benchmarks.measure import StepClock, held_bytes, now, peak_bytes, reset_peak
from benchmarks.records import Agreement, EncodeMeasurement, TrainMeasurement
from embedtune.config import TrainingConfig
from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable, tokenize
from embedtune.kernels.allocator import keep_freed_memory
from embedtune.models.adapters import attach_lora, trainable_parameters
from embedtune.models.encoder import Encoder
from embedtune.models.hardware import PrecisionName, choose_precision, torch_dtype
from embedtune.models.load import load_encoder
from embedtune.progress import SilentReporter, TrainingReporter
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.plan import make_plan

PRECISIONS: dict[str, PrecisionName] = {"embedtune": "auto", "embedtune-fp32": "fp32"}


def agree_train(runner: str, job: TrainJob, embeddings: Path) -> Agreement:
    """Embeddings and loss of the first batch with a random adapter, nothing dropped."""
    encoder, precision = load(runner, job)
    adapted = _adapted(encoder, job)
    fill_adapter(adapted.named_parameters(), seed=job.seed)
    objective = _objective(encoder, job)
    encoder.eval()
    rows_B = np.arange(job.batch_size)
    texts_U = [table[int(row)] for table in (objective.query_tokens, objective.passage_tokens) for row in rows_B]
    with torch.inference_mode():
        loss, tokens = objective(rows_B)
        np.save(embeddings, encoder(texts_U).cpu().numpy())
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
    adapted = _adapted(encoder, job)
    loaded = held_bytes(device)
    reset_peak(device)
    started = time.perf_counter()
    objective = _objective(encoder, job)
    steps = len(objective.pairs) // job.batch_size
    data_seconds = (time.perf_counter() - started) / steps
    clock = StepClock(device)
    with TemporaryDirectory() as folder:
        progress = _trainer(adapted, objective, clock, job, steps, Path(folder)).run(resume=False)
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
    device = torch.device(job.device)
    precision, _ = choose_precision(PRECISIONS[runner], device)
    encoder = load_encoder(job.base, device=device, dtype=torch_dtype(precision), max_length=job.max_length)
    return encoder, precision


@dataclass
class _GivenBatches:
    """The loss of the next given batch, whichever rows the loop asks for; a step begins with it."""

    objective: ContrastiveObjective
    batch_size: int
    clock: StepClock
    done: int = 0

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        self.clock.begin()
        first = self.done * self.batch_size
        self.done += 1
        return self.objective(np.arange(first, first + len(rows)))


class _StepEnds(SilentReporter):
    """A step ends when the loop reports it."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    @contextmanager
    def training(self, *, done: int, steps: int) -> Iterator[TrainingReporter]:
        yield self

    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
        self._clock.end()

    def evaluated(self, *, step: int, metric: str, value: float, best: bool) -> None:
        pass


def _adapted(encoder: Encoder, job: TrainJob) -> PeftModel:
    torch.manual_seed(job.seed)
    return attach_lora(encoder, rank=job.rank, alpha=job.alpha, dropout=0.0)


def _objective(encoder: Encoder, job: TrainJob) -> ContrastiveObjective:
    """Row n is question n with passage n; no text comes twice in a batch, so none has to be merged."""
    queries, passages = zip(*flatten(read_batches(job.batches)), strict=True)
    ids_N = np.arange(len(queries))
    pairs = Pairs(
        query_ids=ids_N,
        passage_ids=ids_N,
        negative_ids=((),) * len(ids_N),
        row_ids=tuple(map(str, ids_N)),
    )
    return ContrastiveObjective(
        encoder=encoder,
        pairs=pairs,
        qrels={row: {row: 1.0} for row in range(len(ids_N))},
        query_tokens=_tokens(encoder, list(queries)),
        passage_tokens=_tokens(encoder, list(passages)),
        scale=job.scale,
        both_directions=False,
    )


def _tokens(encoder: Encoder, texts: list[str]) -> TokenTable:
    """Without the model's prompts, which Sentence Transformers' trainer does not add by itself either."""
    tokenizer = encoder.sentence_transformer.tokenizer
    return tokenize(
        texts,
        tokenizer=tokenizer,
        prompt="",
        max_length=encoder.max_length,
        empty_id=tokenizer.pad_token_id or 0,
    )


def _encode(encoder: Encoder, texts: list[str]) -> Tensor:
    return encoder.encode(_tokens(encoder, texts))


def _trainer(
    adapted: PeftModel,
    objective: ContrastiveObjective,
    clock: StepClock,
    job: TrainJob,
    steps: int,
    folder: Path,
) -> Trainer:
    """embedtune's trainer; its evaluations, before the first and after the last step, do nothing."""
    config = TrainingConfig(
        lr=job.lr,
        batch_size=job.batch_size,
        max_steps=steps,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=job.weight_decay,
        scale=job.scale,
        eval_steps=steps,
    )
    return Trainer(
        model=adapted,
        objective=_GivenBatches(objective, job.batch_size, clock),
        evaluate=lambda: {config.metric: 0.0},
        pairs=objective.pairs,
        config=config,
        plan=make_plan(config, len(objective.pairs)),
        seed=job.seed,
        checkpoints=Checkpoints(folder / "checkpoints", keep_last=1),
        log_folder=folder,
        reporter=_StepEnds(clock),
    )
