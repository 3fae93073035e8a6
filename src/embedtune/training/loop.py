"""The step loop: forward, backward, step; evaluate, checkpoint, stop.

It knows nothing of encoders or passages: the objective turns row numbers into a loss, `evaluate` returns
metrics. Which rows come at which step is a function of the seed and the step, so a resumed run sees what it would
have seen.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from embedtune.config import TrainingConfig
from embedtune.data.batches import BatchOrder
from embedtune.data.collection import IdArray, Pairs
from embedtune.errors import NonFiniteLossError, RunError, TrainingInterrupted
from embedtune.models.memory import out_of_memory
from embedtune.progress import Reporter, TrainingReporter
from embedtune.training.checkpoint import Checkpoints, Progress
from embedtune.training.microbatch import MicroBatch
from embedtune.training.optim import build_optimizer, build_scheduler
from embedtune.training.plan import Plan
from embedtune.training.random_state import random_state, restore_random_state
from embedtune.training.signals import stop_on_signals

logger = logging.getLogger(__name__)

Objective = Callable[[IdArray], tuple[Tensor, int]]
Evaluate = Callable[[], Mapping[str, float]]

UNREAD_STEPS = {"cpu": 0, "cuda": 1}
"""Steps whose losses may still be unread when the next one is made: a GPU is told what to do while it does the last."""


class _Step:
    """An optimiser step that was taken, or that a GPU has been told to take."""

    def __init__(self, number: int, losses: list[Tensor], *, lr: float, pairs: int) -> None:
        self.number, self.lr, self.pairs = number, lr, pairs
        self._losses = torch.stack(losses).to("cpu", non_blocking=True)
        self._copied = None
        if losses[0].device.type == "cuda":
            # To read a tensor of the GPU is to wait for all that it was told to do by then; this waits for the copy.
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def loss(self) -> float:
        """The mean over its contrastive batches."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._losses.double().mean().item()


@dataclass
class _State:
    """What changes from step to step."""

    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    order: BatchOrder
    progress: Progress
    unread: deque[_Step] = field(default_factory=deque)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """One training run, from its first step or its last checkpoint."""

    model: nn.Module
    """Holds the trainable parameters; its `train()` is called before the first step and after each evaluation."""
    objective: Objective
    evaluate: Evaluate
    pairs: Pairs
    config: TrainingConfig
    plan: Plan
    seed: int
    checkpoints: Checkpoints
    log_folder: Path
    """TensorBoard files go into its folder `tensorboard`."""
    reporter: Reporter
    mixed_precision: str = "no"
    """Accelerate's: "fp16" scales the loss; "no" for fp32 and bf16, whose range needs no scaling."""
    micro_batch: MicroBatch | None = None
    """The objective's, if it has one: made smaller where memory runs out, and kept with the checkpoints."""

    def run(self, *, resume: bool) -> Progress:
        """Train; the model ends with the weights of the best evaluation.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the model has the weights of the last checkpoint.
            RunError: memory ran out, and smaller micro-batches would not help.
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        """
        accelerator = self._accelerator()
        optimizer = accelerator.prepare(build_optimizer(self.model.parameters(), self.config, self.plan))
        scheduler = build_scheduler(optimizer, self.config, self.plan)
        order = BatchOrder(
            self.pairs, batch_size=self.plan.batch_size, seed=self.seed, passage_once=self.config.passage_once
        )
        state = _State(accelerator, optimizer, scheduler, order, Progress())
        saved = self.checkpoints.steps()
        if resume and saved:
            state.progress = self.checkpoints.load(saved[-1], self.model, optimizer, scheduler)
            logger.info("resumed from step %d", state.progress.step)
        self._take_up_micro_batch(state.progress)
        try:
            self._steps(state)
        finally:
            accelerator.end_training()
        self.checkpoints.load_weights(state.progress.best_step, self.model)
        return state.progress

    def _accelerator(self) -> Accelerator:
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        # Accelerate keeps its settings for the process; a second run may use another device or precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=self.mixed_precision,
            log_with="tensorboard",
            project_dir=self.log_folder,
        )
        if accelerator.num_processes > 1:
            raise RunError(
                f"started with {accelerator.num_processes} processes, but embedtune trains in one.\n"
                "Type:  embedtune train ...   without a launcher."
            )
        accelerator.init_trackers("tensorboard")
        return accelerator

    def _steps(self, state: _State) -> None:
        progress = state.progress
        with (
            stop_on_signals() as stop,
            self.reporter.training(done=progress.step, steps=self.plan.steps) as reporter,
        ):
            self.model.train()
            if progress.step == 0:
                self._evaluate(state, reporter)
            while progress.step < self.plan.steps and not self._patience_is_out(progress):
                self._timed_step(state)
                self._read(state, reporter, leave=UNREAD_STEPS[state.accelerator.device.type])
                if progress.step % self.plan.eval_steps == 0 or progress.step == self.plan.steps:
                    self._read(state, reporter)
                    self._evaluate(state, reporter)
                if stop.asked:
                    self._read(state, reporter)
                    self._interrupt(state)

    def _timed_step(self, state: _State) -> None:
        started = time.perf_counter()
        self._step(state)
        state.progress.seconds += time.perf_counter() - started

    def _step(self, state: _State) -> None:
        """One optimiser step over `accumulate` contrastive batches; nothing in it waits for a GPU."""
        progress, lr = state.progress, float(state.scheduler.get_last_lr()[0])
        losses = self._gradients(state)
        if self.config.max_grad_norm > 0:
            trained = [p for group in state.optimizer.param_groups for p in group["params"]]
            state.accelerator.clip_grad_norm_(trained, self.config.max_grad_norm)
        state.optimizer.step()
        state.scheduler.step()
        state.optimizer.zero_grad()
        progress.step += 1
        state.unread.append(_Step(progress.step, losses, lr=lr, pairs=progress.pairs))

    def _gradients(self, state: _State) -> list[Tensor]:
        """Forward and backward of one step; again with smaller micro-batches where memory runs out."""
        start = random_state()
        while True:
            try:
                return self._forward_backward(state)
            except (RuntimeError, MemoryError) as error:
                if self.micro_batch is None or not out_of_memory(error):
                    raise
                what_was_done = self.micro_batch.shrink()
            # The error is gone by now, and with it the tensors that its traceback held.
            state.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
            restore_random_state(start)
            state.progress.micro_batch_tokens = self.micro_batch.tokens
            logger.warning(what_was_done)
            self.reporter.warn(what_was_done)

    def _forward_backward(self, state: _State) -> list[Tensor]:
        """The gradients of one step; returns the loss of each of its contrastive batches."""
        progress, losses, pairs, tokens = state.progress, list[Tensor](), 0, 0
        for part in range(self.config.accumulate):
            rows = state.order[progress.step * self.config.accumulate + part]
            loss, embedded = self.objective(rows)
            state.accelerator.backward(loss / self.config.accumulate)
            losses.append(loss.detach())
            pairs, tokens = pairs + len(rows), tokens + embedded
        progress.pairs += pairs
        progress.tokens += tokens
        return losses

    def _read(self, state: _State, reporter: TrainingReporter, *, leave: int = 0) -> None:
        """Read the losses of the steps taken, all but the last few; check and log them."""
        progress = state.progress
        while len(state.unread) > leave:
            step = state.unread.popleft()
            started = time.perf_counter()
            loss = step.loss()
            progress.seconds += time.perf_counter() - started
            self._check(loss, step)
            state.accelerator.log({"train/loss": loss, "train/lr": step.lr}, step=step.number)
            progress.losses.append(loss)
            reporter.step(step=step.number, loss=loss, lr=step.lr, pairs_per_second=step.pairs / progress.seconds)

    def _evaluate(self, state: _State, reporter: TrainingReporter) -> None:
        """Evaluate on dev, note whether it is the best so far, and write a checkpoint."""
        progress, name = state.progress, self.config.metric
        metrics = dict(self.evaluate())
        self.model.train()
        progress.evaluations.append({"step": progress.step, **metrics})
        state.accelerator.log({f"dev/{name}": value for name, value in metrics.items()}, step=progress.step)
        if metrics[name] > progress.best_metric:
            progress.best_metric, progress.best_step = metrics[name], progress.step
            progress.evaluations_without_gain = 0
        else:
            progress.evaluations_without_gain += 1
        self.checkpoints.save(self.model, state.optimizer, state.scheduler, progress)
        reporter.evaluated(
            step=progress.step, metric=name, value=metrics[name], best=progress.best_step == progress.step
        )

    def _patience_is_out(self, progress: Progress) -> bool:
        patience = self.config.patience
        return patience is not None and progress.evaluations_without_gain >= patience

    def _check(self, loss: float, step: _Step) -> None:
        """Raise if that is no number. The step has been taken by now: the weights of the last checkpoint come back."""
        if not math.isfinite(loss):
            good = self.checkpoints.steps()[-1]
            self.checkpoints.load_weights(good, self.model)
            raise NonFiniteLossError(
                f"the loss became {loss} at step {step.number} (learning rate {step.lr:.2g}); "
                f"the last good checkpoint is step {good}.\n"
                "Try a lower --lr, or --precision fp32."
            )

    def _take_up_micro_batch(self, progress: Progress) -> None:
        """A resumed run goes on with the micro-batch it had come to, or a smaller one if that is asked for."""
        if self.micro_batch is not None:
            sizes = [size for size in (progress.micro_batch_tokens, self.micro_batch.tokens) if size is not None]
            self.micro_batch.tokens = progress.micro_batch_tokens = min(sizes) if sizes else None

    def _interrupt(self, state: _State) -> None:
        step = state.progress.step
        if step not in self.checkpoints.steps():
            self.checkpoints.save(self.model, state.optimizer, state.scheduler, state.progress)
        raise TrainingInterrupted(f"stopped at step {step} of {self.plan.steps}; everything is saved.")
