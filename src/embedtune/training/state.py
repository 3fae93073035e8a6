"""What changes from step to step in the loop, and a step that was taken."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from embedtune.data.collection import IdArray
from embedtune.training.batching import StepBatches
from embedtune.training.checkpoint import Progress, Trained
from embedtune.training.signals import EXIT_SECONDS, StopRequest


class Step:
    """An optimiser step that was taken, or that a GPU has been told to take."""

    def __init__(self, number: int, losses: list[Tensor], *, lr: float, pairs: int, rows: list[IdArray]) -> None:
        self.number, self.lr, self.pairs, self.rows = number, lr, pairs, rows
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
class State:
    """What changes from step to step."""

    accelerator: Accelerator
    trained: Trained
    batches: StepBatches
    stop: StopRequest
    progress: Progress
    phase: int | None = None
    """The number of the phase that has begun."""
    unread: deque[Step] = field(default_factory=deque)
    saved: tuple[int, int] | None = None
    """Step and number of evaluations of the last checkpoint."""
    saved_at: float = field(default_factory=time.monotonic)
    step_seconds: float = 0.0
    """The longest that a step, a checkpoint and an evaluation have taken yet."""
    save_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def reserve(self) -> float:
        """Seconds to keep of the time given, for a checkpoint and the end of the process."""
        return 2 * self.save_seconds + EXIT_SECONDS
