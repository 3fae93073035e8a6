"""embedtune's own step loop on given batches; a step ends where the next one begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.batches import flatten, read_batches
from benchmarks.jobs import Method, TrainJob
from benchmarks.measure import StepClock
from embedtune.config import LossConfig, TrainingConfig
from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable, tokenize
from embedtune.losses.build import build_loss
from embedtune.models.encoder import Encoder
from embedtune.progress import SilentReporter
from embedtune.training.checkpoint import Checkpoints, Progress
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.plan import make_plan
from embedtune.training.selection import Measured


def given_objective(encoder: Encoder, batches: str, *, scale: float) -> ContrastiveObjective:
    """The loss over a file of batches.

    Row n is question n with passage n; no text comes twice in a batch, so none has to be merged.
    """
    queries, passages = zip(*flatten(read_batches(batches)), strict=True)
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
        query_tokens=tokens_of(encoder, list(queries)),
        passage_tokens=tokens_of(encoder, list(passages)),
        loss=build_loss(LossConfig(scale=scale)),
    )


def tokens_of(encoder: Encoder, texts: list[str]) -> TokenTable:
    """Without the model's prompts, which Sentence Transformers' trainer does not add by itself either."""
    tokenizer = encoder.tokenizer
    return tokenize(
        texts,
        tokenizer=tokenizer,
        prompt="",
        max_length=encoder.max_length,
        empty_id=tokenizer.pad_token_id or 0,
    )


def training_config(job: TrainJob) -> TrainingConfig:
    """The job's optimiser and schedule in embedtune's terms."""
    return TrainingConfig(
        lr=job.lr,
        batch_size=job.batch_size,
        schedule=job.schedule,
        warmup_fraction=job.warmup_fraction,
        weight_decay=job.weight_decay,
    )


def run_steps(
    encoder: Encoder,
    objective: ContrastiveObjective,
    config: TrainingConfig,
    clock: StepClock,
    *,
    method: Method,
    seed: int,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
) -> Progress:
    """Train on the objective's batches once with embedtune's trainer, which writes no checkpoint here.

    Args:
        encoder: made trainable.
        objective: of `given_objective`.
        config: optimiser, schedule, batch size, and the learning rate if not the method's default.
        clock: is told of each step.
        method: what is trained.
        seed: of the trainer.
        evaluate: returns the dev metrics, before the first step and every `config.eval_steps`; what it raises ends the
            training. Nothing is evaluated if not given.
    """
    pairs = objective.pairs
    steps = len(pairs) // (config.batch_size or len(pairs))
    config = replace(config, max_steps=steps, eval_steps=config.eval_steps or steps)

    def evaluate_between_steps() -> Measured:
        clock.end()
        return Measured(evaluate() if evaluate else {config.metric: 0.0})

    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model=encoder,
            objective=_GivenBatches(objective, clock),
            evaluate=evaluate_between_steps,
            pairs=pairs,
            config=config,
            plan=make_plan(config, len(pairs), method=method),
            seed=seed,
            checkpoints=_NoCheckpoints(Path(folder), keep_last=1),
            log_folder=Path(folder),
            reporter=SilentReporter(),
            mixed_precision="fp16" if encoder.source.precision == "fp16" else "no",
            micro_batch=objective.micro_batch,
        )
        return trainer.run(resume=False)


@dataclass
class _GivenBatches:
    """The loss of the next given batch, whichever rows the loop asks for; a step begins with it."""

    objective: ContrastiveObjective
    clock: StepClock
    asked: IdArray | None = None
    """Rows; the same ones again are a step that is repeated because memory ran out."""
    done: int = 0
    """Rows of the given batches up to and with the last one."""

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        if rows is not self.asked:
            self.clock.begin()
            self.asked, self.done = rows, self.done + len(rows)
        return self.objective(np.arange(self.done - len(rows), self.done))


class _NoCheckpoints(Checkpoints):
    """Writes and loads nothing: weights and moments of a large model are gigabytes, and no part of a step."""

    def steps(self) -> list[int]:
        return [0]

    def save(self, *state: Any) -> None:
        pass

    def damage(self, step: int) -> None:
        pass

    def load_weights(self, *step_and_model: Any) -> None:
        pass
