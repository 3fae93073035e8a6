"""embedtune's own step loop on given batches; the clock is read where a step begins and where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.batches import flatten, read_batches
from benchmarks.jobs import Method
from benchmarks.measure import StepClock
from embedtune.config import TrainingConfig
from embedtune.data.collection import IdArray, Pairs
from embedtune.data.tokens import TokenTable, tokenize
from embedtune.models.encoder import Encoder
from embedtune.progress import SilentReporter, TrainingReporter
from embedtune.training.checkpoint import Checkpoints, Progress
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.plan import make_plan


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
        scale=scale,
        both_directions=False,
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


def run_steps(
    encoder: Encoder,
    objective: ContrastiveObjective,
    config: TrainingConfig,
    clock: StepClock,
    *,
    method: Method,
    seed: int,
) -> Progress:
    """Train on the objective's batches once, at a constant learning rate, with embedtune's trainer.

    Its evaluations, before the first and after the last step, do nothing, and its checkpoints are not written.

    Args:
        encoder: made trainable.
        objective: of `given_objective`.
        config: optimiser, batch size, and the learning rate if not the method's default.
        clock: is told of each step.
        method: what is trained.
        seed: of the trainer.
    """
    pairs = objective.pairs
    steps = len(pairs) // (config.batch_size or len(pairs))
    config = replace(config, max_steps=steps, eval_steps=steps, schedule="constant", warmup_fraction=0.0)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model=encoder,
            objective=_GivenBatches(objective, clock),
            evaluate=lambda: {config.metric: 0.0},
            pairs=pairs,
            config=config,
            plan=make_plan(config, len(pairs), method=method),
            seed=seed,
            checkpoints=_NoCheckpoints(Path(folder), keep_last=1),
            log_folder=Path(folder),
            reporter=_StepEnds(clock),
            mixed_precision="fp16" if encoder.source.precision == "fp16" else "no",
        )
        return trainer.run(resume=False)


@dataclass
class _GivenBatches:
    """The loss of the next given batch, whichever rows the loop asks for; a step begins with it."""

    objective: ContrastiveObjective
    clock: StepClock
    done: int = 0
    """Rows."""

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        self.clock.begin()
        first = self.done
        self.done += len(rows)
        return self.objective(np.arange(first, self.done))


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


class _NoCheckpoints(Checkpoints):
    """Writes and loads nothing: weights and moments of a large model are gigabytes, and no part of a step."""

    def steps(self) -> list[int]:
        return [0]

    def save(self, *state: Any) -> None:
        pass

    def load_weights(self, *step_and_model: Any) -> None:
        pass
