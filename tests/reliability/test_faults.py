"""The disk is full, fails or refuses at every single call of a checkpoint: the last good one is kept."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from embedtune.config import TrainingConfig
from embedtune.errors import StorageError
from embedtune.training import checkpoint
from embedtune.training.checkpoint import Checkpoints, Progress, Trained
from embedtune.training.optim import build_optimizer, build_scheduler
from embedtune.training.plan import make_plan

ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES]


class Fault:
    """Lets the n-th call that touches the disk fail, and notes whether there was one."""

    def __init__(self, number: int, error: int) -> None:
        self.fired: str | None = None
        self._left, self._error = number, error

    def before(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.fired = name
            # The library that writes tensors has an exception of its own for what the system says.
            said = os.strerror(self._error)
            raise SafetensorError(f"I/O error: {said}") if "_file" in name else OSError(self._error, said)


@contextmanager
def failing(number: int, error: int, *, reading: bool = False) -> Iterator[Fault]:
    fault = Fault(number, error)
    places: list[tuple[Any, str]] = [(io, "open"), (checkpoint, "load_file")]
    if not reading:
        places = [(io, "open"), (checkpoint, "save_file")]
        places += [(os, name) for name in ("open", "fsync", "mkdir", "rename", "replace")]

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            fault.before(name)
            return real(*given, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in places:
            real = (lambda descriptor: None) if name == "fsync" else getattr(module, name)
            patch.setattr(module, name, wrap(name, real))
        yield fault


def a_run() -> Trained:
    torch.manual_seed(0)
    config = TrainingConfig(lr=0.1, max_steps=20)
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Dropout(0.5), nn.Linear(4, 1))
    plan = make_plan(config, 100)
    optimizer = build_optimizer(model.parameters(), config, plan)
    return Trained(model=model, optimizer=optimizer, scheduler=build_scheduler(optimizer, plan))


def take_step(run: Trained) -> None:
    run.model(torch.ones(8, 4)).square().mean().backward()
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad()


def weights(run: Trained) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def three_checkpoints(folder: Path) -> tuple[Checkpoints, Trained, dict[int, torch.Tensor]]:
    """A run with checkpoints of steps 0 and 1, that has taken step 2; and the weights of each step."""
    checkpoints, run, seen = Checkpoints(folder, keep_last=2), a_run(), dict[int, torch.Tensor]()
    checkpoints.open()
    for number in range(3):
        seen[number] = weights(run)
        if number < 2:
            checkpoints.save(run, Progress(step=number, best_step=number))
            take_step(run)
    return checkpoints, run, seen


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.__getitem__)
def test_wherever_writing_fails_a_whole_checkpoint_is_left(error: int, tmp_path: Path) -> None:
    fired = list[str]()
    for number in range(1, 200):
        folder = tmp_path / str(number)
        checkpoints, run, seen = three_checkpoints(folder)
        with failing(number, error) as fault:
            try:
                checkpoints.save(run, Progress(step=2, best_step=2))
                done = True
            except (OSError, SafetensorError):
                done = False
        if fault.fired is None:
            break
        fired.append(fault.fired)
        checkpoints.open()
        resumed = a_run()
        progress = checkpoints.load_newest(resumed, warn=pytest.fail)
        assert progress is not None
        assert progress.step == 2 or not done
        assert torch.equal(weights(resumed), seen[progress.step]), (number, fault.fired)
        assert not list(folder.glob(".*")), (number, fault.fired)
        assert len(checkpoints.steps()) >= 2
    assert len(fired) >= 15
    assert {"open", "fsync", "mkdir", "rename", "save_file"} <= set(fired)


def test_wherever_reading_fails_the_checkpoint_before_is_taken(tmp_path: Path) -> None:
    taken = list[int]()
    for number in range(1, 100):
        checkpoints, run, seen = three_checkpoints(tmp_path / str(number))
        checkpoints.save(run, Progress(step=2, best_step=2))
        warnings = list[str]()
        resumed = a_run()
        with failing(number, errno.EIO, reading=True) as fault:
            progress = checkpoints.load_newest(resumed, warn=warnings.append)
        assert progress is not None
        assert torch.equal(weights(resumed), seen[progress.step])
        taken.append(progress.step)
        if fault.fired is None:
            assert not warnings
            break
        assert "Input/output error" in warnings[0]
        assert "going on from step 1, the one before" in warnings[0]
    assert taken == [1] * (len(taken) - 1) + [2]
    assert len(taken) >= 6


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_replaced_half_way_comes_back(replaced: bool, tmp_path: Path) -> None:
    """Killed between the two renames: the old one stands aside, and the new one is there or not."""
    checkpoints, run, seen = three_checkpoints(tmp_path)
    os.rename(checkpoints.path(1), tmp_path / ".step-00000001.old")
    if replaced:
        checkpoints.save(run, Progress(step=1, best_step=1))
    checkpoints.open()
    resumed = a_run()
    progress = checkpoints.load_newest(resumed, warn=pytest.fail)
    assert progress is not None
    assert progress.step == 1
    assert torch.equal(weights(resumed), seen[2 if replaced else 1])
    assert not list(tmp_path.glob(".*"))


def test_real_limits_of_the_system_are_told_apart(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the library that writes tensors meets it too."""
    resource = pytest.importorskip("resource")
    checkpoints, run, seen = three_checkpoints(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 300, 700):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises((OSError, SafetensorError)):
                checkpoints.save(run, Progress(step=2, best_step=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        resumed = a_run()
        assert checkpoints.load_newest(resumed, warn=pytest.fail) == Progress(step=1, best_step=1)
        assert torch.equal(weights(resumed), seen[1])


def test_no_whole_checkpoint_is_an_error_that_says_so(tmp_path: Path) -> None:
    checkpoints, run, _ = three_checkpoints(tmp_path)
    for step in checkpoints.steps():
        (checkpoints.path(step) / checkpoint.STATE).write_text("{}")
    with pytest.raises(StorageError, match="No checkpoint of this run can be used"):
        checkpoints.load_newest(run, warn=lambda text: None)
