"""The step loop: forward, backward, step; evaluate, checkpoint, stop.

It knows nothing of encoders or passages: the objective turns row numbers into a loss, `evaluate` returns
metrics. Which rows come at which step is a function of the seed and the step, and whether an evaluation is due one of
the progress, so a run that is resumed at any checkpoint does and sees what it would have.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from torch import Tensor, nn

from embedtune.atomic import why_not_written
from embedtune.config import TrainingConfig
from embedtune.data.collection import IdArray, Pairs
from embedtune.durations import parse_seconds
from embedtune.errors import RunError, StorageError, TrainingInterrupted
from embedtune.models.memory import out_of_memory, told_if_memory_runs_out
from embedtune.progress import Reporter, TrainingReporter
from embedtune.training.batching import StepBatches
from embedtune.training.checkpoint import Checkpoints, Progress, Trained
from embedtune.training.faults import Faults
from embedtune.training.microbatch import MicroBatch
from embedtune.training.optim import allocate_moments, build_optimizer, build_scheduler
from embedtune.training.plan import Plan
from embedtune.training.random_state import random_state, restore_random_state
from embedtune.training.selection import Measured, Worse, count_evaluation
from embedtune.training.signals import EXIT_SECONDS, Stopped, StopRequest, stop_requests
from embedtune.training.state import State, Step

logger = logging.getLogger(__name__)

Objective = Callable[[IdArray], tuple[Tensor, int]]

Evaluate = Callable[[], Measured]

UNREAD_STEPS = {"cpu": 0, "cuda": 1}
"""Steps whose losses may still be unread when the next one is made: a GPU is told what to do while it does the last."""


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
    start: Measured | None = None
    """What an evaluation before the first step finds, where that is known."""
    worse: Worse | None = None
    """Tells which evaluation's weights are kept (`count_evaluation`)."""
    mixed_precision: str = "no"
    """Accelerate's: "fp16" scales the loss; "no" for fp32 and bf16, whose range needs no scaling."""
    micro_batch: MicroBatch | None = None
    """The objective's, if it has one: made smaller where memory runs out, and kept with the checkpoints."""
    begin_phase: Callable[[int, bool, float, StepBatches], None] | None = None
    """Is told the number of a phase of the plan before its first step, and of a resumed run's before it goes on; also
    whether steps of the phase were taken before, and the best dev metric before the phase. The objective may change
    with it, and so may the batches, whose rows it may link."""
    not_finite: Callable[[IdArray], list[str]] | None = None
    """Names texts of these rows whose embeddings are NaN or infinite."""
    keep: Callable[[], None] | None = None
    """Writes what a resumed run is to find, once there is a folder to write to."""

    @cached_property
    def _faults(self) -> Faults:
        return Faults(self.model, self.checkpoints, self.not_finite)

    def run(self, *, resume: bool, stop: StopRequest | None = None) -> Progress:
        """Train; the model ends with the weights of the evaluation that counts.

        Args:
            resume: go on from the newest checkpoint, if there is any.
            stop: the request of the run that this is a part of; made here if not given.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the model has the weights of the last checkpoint.
            StorageError: a checkpoint can't be written, or all are damaged.
            RunError: memory ran out, and smaller micro-batches would not help.
            TrainingInterrupted: Ctrl-C, SIGTERM, or `max_time` is over; a checkpoint was written.
        """
        time_given = self.config.max_time
        seconds = parse_seconds(time_given, option="max-time") if time_given else None
        with nullcontext(stop) if stop is not None else stop_requests(seconds) as request:
            try:
                with request.at_once(reserve=EXIT_SECONDS):
                    return self._run(request, resume=resume)
            except Stopped:
                raise TrainingInterrupted(
                    "stopped; the training's checkpoints are saved.", request.exit_code or TrainingInterrupted.exit_code
                ) from None

    def batches(self) -> StepBatches:
        """The rows of each step."""
        return StepBatches(
            self.pairs,
            self.plan,
            accumulate=self.config.accumulate,
            seed=self.seed,
            passage_once=self.config.passage_once,
        )

    def _run(self, stop: StopRequest, *, resume: bool) -> Progress:
        state = self._begin(stop, resume=resume)
        progress = state.progress
        self._take_up_micro_batch(progress)
        try:
            with stop.held(), self.reporter.training(done=progress.step, steps=self.plan.steps) as reporter:
                self.model.train()
                self._steps(state, reporter)
        finally:
            state.accelerator.end_training()
        self._keep_to_whole_checkpoints(progress)
        self.checkpoints.load_weights(progress.best_step, self.model)
        return progress

    def _begin(self, stop: StopRequest, *, resume: bool) -> State:
        accelerator = self._accelerator()
        optimizer: AcceleratedOptimizer = accelerator.prepare(
            build_optimizer(self.model.parameters(), self.config, self.plan)
        )
        scheduler = build_scheduler(optimizer, self.plan)
        trained = Trained(model=self.model, optimizer=optimizer, scheduler=scheduler, scaler=accelerator.scaler)
        state = State(accelerator, trained, self.batches(), stop, Progress())
        try:
            self.checkpoints.open()
            if self.keep is not None:
                self.keep()
            saved = self.checkpoints.load_newest(trained, warn=self.reporter.warn) if resume else None
        except OSError as error:
            raise StorageError(
                f"{self.checkpoints.folder}: {why_not_written(error, self.checkpoints.folder)}"
            ) from error
        with told_if_memory_runs_out(lambda: self._faults.optimizer_is_too_large("before the next step")):
            allocate_moments(optimizer)
        if saved is not None:
            state.progress, state.saved = saved, (saved.step, len(saved.evaluations))
            logger.info("resumed from step %d", saved.step)
            self._keep_to_whole_checkpoints(saved)
        self._open_log(state, resume=resume)
        return state

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
        return accelerator

    def _open_log(self, state: State, *, resume: bool) -> None:
        """TensorBoard's file. A resumed run's says from which step on the earlier ones no longer count."""
        progress = state.progress
        options = {"tensorboard": {"purge_step": progress.step}} if resume else {}
        state.accelerator.init_trackers("tensorboard", init_kwargs=options)
        # The step of the checkpoint is purged with those after it, as it may have been evaluated since; so once more.
        if progress.losses:
            state.accelerator.log({"train/loss": progress.losses[-1], "train/lr": progress.lr}, step=progress.step)
        if _is_evaluated(progress):
            self._log_evaluation(state)

    def _steps(self, state: State, reporter: TrainingReporter) -> None:
        progress = state.progress
        while True:
            if self._evaluation_is_due(progress):
                self._read(state, reporter)
                self._evaluate(state, reporter)
            if progress.step >= self.plan.steps or self._patience_is_out(progress):
                return
            if state.stop.seconds_left < 1.5 * state.step_seconds + state.reserve:
                state.stop.ask(TrainingInterrupted.TIME_IS_UP)
            if state.stop.asked:
                self._read(state, reporter)
                self._interrupt(state)
            self._begin_phase(state, reporter)
            started = time.monotonic()
            self._timed_step(state)
            self._read(state, reporter, leave=UNREAD_STEPS[state.accelerator.device.type])
            state.step_seconds = max(state.step_seconds, time.monotonic() - started)
            if time.monotonic() - state.saved_at >= 60 * self.config.checkpoint_minutes:
                self._read(state, reporter)
                self._save(state)

    def _evaluation_is_due(self, progress: Progress) -> bool:
        """Before the first step, every `eval_steps`, before negatives are mined and after the last step; once each."""
        return self.plan.evaluates_at(progress.step) and not _is_evaluated(progress)

    def _begin_phase(self, state: State, reporter: TrainingReporter) -> None:
        """Before the first step of a phase, and of a run that is resumed within one. A request to stop is heard."""
        number = self.plan.phase_at(state.progress.step)
        if number == state.phase or self.begin_phase is None:
            return
        self._read(state, reporter)
        start = random_state()
        try:
            with state.stop.at_once(reserve=state.reserve):
                first, progress = self.plan.phases[number].first_step, state.progress
                best = max(e[self.config.metric] for e in progress.evaluations if e["step"] <= first)
                self.begin_phase(number, progress.step > first, best, state.batches)
        except Stopped:
            restore_random_state(start)
            self._interrupt(state)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                f"memory ran out while negatives were mined at step {state.progress.step}; "
                f"{self._faults.what_is_saved()}\n"
                "Type:  a smaller --max-length, or --mined-epochs 0."
            ) from error
        restore_random_state(start)
        self.model.train()
        state.phase = number

    def _timed_step(self, state: State) -> None:
        started = time.perf_counter()
        self._step(state)
        state.progress.seconds += time.perf_counter() - started

    def _step(self, state: State) -> None:
        """One optimiser step over `accumulate` contrastive batches; nothing in it waits for a GPU."""
        progress, lr = state.progress, float(state.trained.scheduler.get_last_lr()[0])
        optimizer = state.trained.optimizer
        losses, rows = self._gradients(state)
        # Not tried again: some weights may have changed by then, and others not.
        with told_if_memory_runs_out(lambda: self._faults.optimizer_is_too_large(f"in step {progress.step + 1}")):
            if self.config.max_grad_norm > 0:
                trained = [p for group in optimizer.param_groups for p in group["params"]]
                state.accelerator.clip_grad_norm_(trained, self.config.max_grad_norm)
            optimizer.step()
            if self.plan.phases[self.plan.phase_at(progress.step)].averaged:
                state.trained.average.add()
        state.trained.scheduler.step()
        optimizer.zero_grad()
        progress.step += 1
        progress.lr = lr
        state.unread.append(Step(progress.step, losses, lr=lr, pairs=progress.pairs, rows=rows))

    def _gradients(self, state: State) -> tuple[list[Tensor], list[IdArray]]:
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
            state.trained.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
            restore_random_state(start)
            state.progress.micro_batch_tokens = self.micro_batch.tokens
            logger.warning(what_was_done)
            self.reporter.warn(what_was_done)

    def _forward_backward(self, state: State) -> tuple[list[Tensor], list[IdArray]]:
        """The gradients of one step; returns the loss and the rows of each of its contrastive batches."""
        progress, losses, tokens = state.progress, list[Tensor](), 0
        batches = state.batches[progress.step]
        for rows in batches:
            loss, embedded = self.objective(rows)
            state.accelerator.backward(loss / self.config.accumulate)
            losses.append(loss.detach())
            tokens += embedded
        progress.pairs += sum(map(len, batches))
        progress.tokens += tokens
        return losses, batches

    def _read(self, state: State, reporter: TrainingReporter, *, leave: int = 0) -> None:
        """Read the losses of the steps taken, all but the last few; check and log them."""
        progress = state.progress
        while len(state.unread) > leave:
            step = state.unread.popleft()
            started = time.perf_counter()
            loss = step.loss()
            progress.seconds += time.perf_counter() - started
            self._faults.check_loss(loss, step)
            state.accelerator.log({"train/loss": loss, "train/lr": step.lr}, step=step.number)
            progress.losses.append(loss)
            reporter.step(step=step.number, loss=loss, lr=step.lr, pairs_per_second=step.pairs / progress.seconds)

    def _evaluate(self, state: State, reporter: TrainingReporter) -> None:
        """Evaluate on dev, note whether these weights are the ones to keep by now, and write a checkpoint."""
        progress, name = state.progress, self.config.metric
        self._faults.check_weights(progress.step)
        found = self._measure(state)
        count_evaluation(progress, found, metric=name, worse=self.worse)
        self._save(state)
        self._log_evaluation(state)
        reporter.evaluated(
            step=progress.step, metric=name, value=found.metrics[name], best=progress.best_step == progress.step
        )

    def _measure(self, state: State) -> Measured:
        """What dev says. A request to stop does not wait for them: they are measured when the run is resumed."""
        if state.progress.step == 0 and self.start is not None:
            return self.start
        if state.stop.seconds_left < 1.2 * state.evaluation_seconds + state.reserve:
            state.stop.ask(TrainingInterrupted.TIME_IS_UP)
        started, start = time.monotonic(), random_state()
        try:
            with (
                state.trained.average.applied(),
                state.stop.at_once(reserve=state.reserve),
                told_if_memory_runs_out(
                    lambda: (
                        f"in the evaluation on the dev set at step {state.progress.step}; "
                        f"{self._faults.what_is_saved()}\n"
                        "Type:  a smaller --dev-corpus or --max-length."
                    )
                ),
            ):
                measured = self.evaluate()
        except Stopped:
            restore_random_state(start)
            self._interrupt(state)
        self.model.train()
        state.evaluation_seconds = max(state.evaluation_seconds, time.monotonic() - started)
        return measured

    def _log_evaluation(self, state: State) -> None:
        metrics = dict(state.progress.evaluations[-1])
        step = int(metrics.pop("step"))
        state.accelerator.log({f"dev/{name}": value for name, value in metrics.items()}, step=step)

    def _save(self, state: State) -> None:
        """Write a checkpoint, unless this moment has one."""
        progress = state.progress
        if state.saved == (moment := (progress.step, len(progress.evaluations))):
            return
        self._faults.check_weights(progress.step)
        started = time.monotonic()
        try:
            self.checkpoints.save(state.trained, progress)
        except (OSError, SafetensorError) as error:
            folder = self.checkpoints.path(progress.step)
            raise StorageError(
                f"the checkpoint {folder} can't be written: {why_not_written(error, folder)}.\n"
                f"{self._faults.what_is_saved().capitalize()}"
            ) from error
        state.saved, state.saved_at = moment, time.monotonic()
        state.save_seconds = max(state.save_seconds, state.saved_at - started)

    def _patience_is_out(self, progress: Progress) -> bool:
        patience = self.config.patience
        return patience is not None and progress.evaluations_without_gain >= patience

    def _keep_to_whole_checkpoints(self, progress: Progress) -> None:
        """If the best checkpoint was damaged, the best of those that are whole is the best from now on."""
        if not progress.evaluations:
            return
        step, damage = self.checkpoints.best_whole(progress, self.config.metric)
        if damage is None:
            return
        value = next(e[self.config.metric] for e in progress.evaluations if e["step"] == step)
        self.reporter.warn(
            f"{damage}. It was the best (dev {self.config.metric} {progress.best_metric:.4f}); "
            f"step {step} ({value:.4f}) takes its place"
        )
        progress.best_step, progress.best_metric = step, value

    def _take_up_micro_batch(self, progress: Progress) -> None:
        """A resumed run goes on with the micro-batch it had come to, or a smaller one if that is asked for."""
        if self.micro_batch is not None:
            sizes = [size for size in (progress.micro_batch_tokens, self.micro_batch.tokens) if size is not None]
            self.micro_batch.tokens = progress.micro_batch_tokens = min(sizes) if sizes else None

    def _interrupt(self, state: State) -> NoReturn:
        self._save(state)
        step, code = state.progress.step, state.stop.exit_code or TrainingInterrupted.exit_code
        timed = f"--max-time {self.config.max_time}: " if code == TrainingInterrupted.TIME_IS_UP else ""
        raise TrainingInterrupted(f"{timed}stopped at step {step} of {self.plan.steps}; everything is saved.", code)


def _is_evaluated(progress: Progress) -> bool:
    """Whether the last step has been."""
    return bool(progress.evaluations) and progress.evaluations[-1]["step"] == progress.step
