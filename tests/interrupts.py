"""A reporter that stops a run as a person at the keyboard would."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from embedtune.progress import SilentReporter, TrainingReporter


class StopsAfter(SilentReporter):
    """Presses Ctrl-C after a step, of the first training or a later one."""

    def __init__(self, step: int, *, training: int = 1) -> None:
        self._step, self._trainings_before = step, training - 1

    @contextmanager
    def training(self, *, done: int, steps: int) -> Iterator[TrainingReporter]:
        with super().training(done=done, steps=steps) as silent:
            yield silent if self._trainings_before else _Presses(silent, self._step)
        self._trainings_before -= 1


class _Presses:
    def __init__(self, silent: TrainingReporter, at: int) -> None:
        self.evaluated = silent.evaluated
        self._at = at

    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)
