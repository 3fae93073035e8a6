"""A reporter that stops a run as a person at the keyboard would."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from embedtune.progress import SilentReporter, TrainingReporter


class StopsAfter(SilentReporter):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    @contextmanager
    def training(self, *, done: int, steps: int) -> Iterator[TrainingReporter]:
        with super().training(done=done, steps=steps) as silent:
            yield _Presses(silent, self._step)


class _Presses:
    def __init__(self, silent: TrainingReporter, at: int) -> None:
        self.evaluated = silent.evaluated
        self._at = at

    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)
