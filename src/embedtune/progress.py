"""How a run tells the person who watches it what it does. The terminal's version is in `cli.console`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Reporter(Protocol):
    """Called by the pipeline and the step loop; nothing depends on what it does."""

    def stage(self, title: str) -> None:
        """A new part of the job begins."""

    def note(self, text: str) -> None:
        """Something that was found, chosen or derived."""

    def warn(self, text: str) -> None:
        """Something that the user should look at."""

    def counting(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a count up to `total`, or an open one if None; the callable is told how many more are done."""
        ...

    def training(self, *, done: int, steps: int) -> AbstractContextManager[TrainingReporter]:
        """Opens the training of `steps` optimiser steps, of which `done` were done before a resume."""
        ...


class TrainingReporter(Protocol):
    """The part of a reporter that the step loop calls."""

    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
        """An optimiser step was done."""

    def evaluated(self, *, step: int, metric: str, value: float, best: bool) -> None:
        """The dev set was evaluated; best says whether these weights are the ones to keep by now."""


class SilentReporter:
    """Says nothing."""

    def stage(self, title: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def counting(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda done: None)

    def training(self, *, done: int, steps: int) -> AbstractContextManager[TrainingReporter]:
        return nullcontext(_SilentTraining())


class _SilentTraining:
    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
        pass

    def evaluated(self, *, step: int, metric: str, value: float, best: bool) -> None:
        pass
