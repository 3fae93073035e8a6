"""The step loop: forward, backward, step; evaluate, checkpoint, stop.

It knows nothing of encoders or passages: the objective turns row numbers into a loss, `evaluate` returns
metrics. Which rows come at which step is a function of the seed and the step, so a resumed run sees what it would
have seen.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from embedtune.config import TrainingConfig
from embedtune.data.batches import BatchOrder
from embedtune.data.collection import IdArray, Pairs
from embedtune.errors import NonFiniteLossError, RunError, TrainingInterrupted
from embedtune.progress import Reporter, TrainingReporter
from embedtune.training.checkpoint import Checkpoints, Progress
from embedtune.training.optim import build_optimizer, build_scheduler
from embedtune.training.plan import Plan
from embedtune.training.signals import stop_on_signals

logger = logging.getLogger(__name__)

Objective = Callable[[IdArray], tuple[Tensor, int]]
Evaluate = Callable[[], Mapping[str, float]]


@dataclass
class _State:
    """What changes from step to step."""

    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    order: BatchOrder
    progress: Progress


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

    def run(self, *, resume: bool) -> Progress:
        """Train; the model ends with the weights of the best evaluation.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        """
        accelerator = self._accelerator()
        optimizer = accelerator.prepare(build_optimizer(self.model.parameters(), self.config, self.plan))
        scheduler = build_scheduler(optimizer, self.config, self.plan)
        order = BatchOrder(self.pairs, batch_size=self.plan.batch_size, seed=self.seed)
        state = _State(accelerator, optimizer, scheduler, order, Progress())
        saved = self.checkpoints.steps()
        if resume and saved:
            state.progress = self.checkpoints.load(saved[-1], self.model, optimizer, scheduler)
            logger.info("resumed from step %d", state.progress.step)
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
                loss = self._timed_step(state)
                self._log(state, loss, reporter)
                if progress.step % self.plan.eval_steps == 0 or progress.step == self.plan.steps:
                    self._evaluate(state, reporter)
                if stop.asked:
                    self._interrupt(state)

    def _timed_step(self, state: _State) -> float:
        started = time.perf_counter()
        loss = self._step(state)
        state.progress.seconds += time.perf_counter() - started
        return loss

    def _log(self, state: _State, loss: float, reporter: TrainingReporter) -> None:
        progress, lr = state.progress, float(state.scheduler.get_last_lr()[0])
        state.accelerator.log({"train/loss": loss, "train/lr": lr}, step=progress.step)
        progress.losses.append(loss)
        rate = progress.pairs / progress.seconds
        reporter.step(step=progress.step, loss=loss, lr=lr, pairs_per_second=rate)

    def _step(self, state: _State) -> float:
        """One optimiser step over `accumulate` contrastive batches; returns their mean loss."""
        progress, total = state.progress, 0.0
        for part in range(self.config.accumulate):
            rows = state.order[progress.step * self.config.accumulate + part]
            loss, tokens = self.objective(rows)
            value = loss.item()
            self._check(value, progress.step + 1, state.scheduler)
            state.accelerator.backward(loss / self.config.accumulate)
            total += value / self.config.accumulate
            progress.pairs += len(rows)
            progress.tokens += tokens
        if self.config.max_grad_norm > 0:
            trained = [p for group in state.optimizer.param_groups for p in group["params"]]
            state.accelerator.clip_grad_norm_(trained, self.config.max_grad_norm)
        state.optimizer.step()
        state.scheduler.step()
        state.optimizer.zero_grad()
        progress.step += 1
        return total

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

    def _check(self, loss: float, step: int, scheduler: LRScheduler) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss became {loss} at step {step} (learning rate {scheduler.get_last_lr()[0]:.2g}); "
                f"the last good checkpoint is step {self.checkpoints.steps()[-1]}.\n"
                "Try a lower --lr, or --precision fp32."
            )

    def _interrupt(self, state: _State) -> None:
        step = state.progress.step
        if step not in self.checkpoints.steps():
            self.checkpoints.save(self.model, state.optimizer, state.scheduler, state.progress)
        raise TrainingInterrupted(f"stopped at step {step} of {self.plan.steps}; everything is saved.")
