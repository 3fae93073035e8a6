"""Checkpoints: everything a run needs to go on as if it had never stopped, without pickle.

A checkpoint is a folder `step-00000042` of four files: the trainable weights and the optimiser's moments in
safetensors, the rest in JSON, and the three's checksums, which `sha256sum --check` reads. Where the mean of
weights is taken, that is what lies there as the weights, and those that the optimiser goes on from lie beside its
moments. A checkpoint is written beside its place, flushed and renamed, so a folder of that name is whole; should a disk
damage it later, the checksums tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from embedtune.atomic import remove_folder, replacing, tidy
from embedtune.errors import OutputError, StorageError, brief
from embedtune.training.averaging import WeightAverage
from embedtune.training.random_state import random_state, restore_random_state
from embedtune.training.weights import set_weights, trainable_tensors, weights_fit

WEIGHTS, OPTIMIZER, STATE, CHECKSUMS = "weights.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"
_OWN = "weights."
"""Before the name of a weight that lies beside the optimiser's moments."""
_SCHEDULER_KEYS = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


class DamagedCheckpointError(StorageError):
    """Files of a checkpoint are missing or are not what was written."""


@dataclass
class Progress:
    """How far a run has come, and what its evaluations said."""

    step: int = 0
    """Optimiser steps done."""
    pairs: int = 0
    """Training rows seen."""
    tokens: int = 0
    """Tokens embedded in training."""
    seconds: float = 0.0
    """Time spent in training steps, evaluation and saving left out."""
    best_step: int = 0
    """Of the evaluation that counts: the latest that is not worse than the highest by more than noise."""
    best_metric: float = float("-inf")
    highest_metric: float = float("-inf")
    """Of all evaluations."""
    highest_items: list[float] = field(default_factory=list)
    """That evaluation, item by item."""
    evaluations_without_gain: int = 0
    lr: float = 0.0
    """Learning rate of the last step."""
    micro_batch_tokens: int | None = None
    """Tokens that went through the encoder at a time; fewer than at the start if memory ran out."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Dev metrics with their `step`."""


def checked_progress(fields: dict[str, Any], step: int) -> Progress:
    """The progress that a checkpoint of this step holds.

    Raises:
        ValueError, TypeError: it is none, or of another step.
    """
    progress = Progress(**fields)
    counts = [progress.pairs, progress.tokens, progress.best_step, progress.evaluations_without_gain]
    counts += [] if progress.micro_batch_tokens is None else [progress.micro_batch_tokens]
    numbers = [progress.seconds, progress.best_metric, progress.highest_metric, progress.lr]
    numbers += [*progress.losses, *progress.highest_items]
    for entry in progress.evaluations:
        numbers += [entry["step"], *entry.values()]
    if progress.step != step:
        raise ValueError(f"it is of step {brief(progress.step)}")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("its counts are no whole numbers")
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError("its losses or metrics are no numbers")
    return progress


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a checkpoint is made of, beside the progress."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler | None = None
    """Of the loss, in fp16."""

    @cached_property
    def average(self) -> WeightAverage:
        """The mean of the model's weights, of no steps until it is begun."""
        return WeightAverage(self.model)


class Checkpoints:
    """The `checkpoints/` folder of a run: the last few and the best one."""

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        numbers = [int(p.name[5:]) for p in found if re.fullmatch("[0-9]{8,18}", p.name[5:])]
        return sorted(step for step in numbers if self.path(step).is_dir())

    def open(self) -> None:
        """Make the folder, or finish there what a killed process left undone.

        Raises:
            OSError: the system refuses.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tidy(self.folder)

    def save(self, trained: Trained, progress: Progress) -> None:
        """Write a checkpoint of this moment; drop the ones that are neither among the last nor the best.

        Raises:
            OSError, SafetensorError: it can't be written; the others are as they were.
        """
        schedule = {key: trained.scheduler.state_dict()[key] for key in _SCHEDULER_KEYS}
        moments, counts = _moments(trained.optimizer)
        average, own = trained.average, dict[str, Tensor]()
        state = {"progress": asdict(progress), "scheduler": schedule, "optimizer": counts, "averaged": average.steps}
        if average.steps:
            own = {_OWN + name: weight for name, weight in trainable_tensors(trained.model).items()}
        if trained.scaler is not None:
            state["scaler"] = trained.scaler.state_dict()
        with replacing(self.path(progress.step)) as unfinished:
            unfinished.mkdir()
            save_file(dict(average.weights()), unfinished / WEIGHTS)
            save_file({**moments, **random_state(), **own}, unfinished / OPTIMIZER)
            (unfinished / STATE).write_text(json.dumps(state), encoding="utf-8")
            sums = [f"{_checksum(unfinished / name)}  {name}\n" for name in (WEIGHTS, OPTIMIZER, STATE)]
            (unfinished / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
        for step in self.steps()[: -self.keep_last]:
            if step != progress.best_step:
                remove_folder(self.path(step))

    def load_newest(self, trained: Trained, *, warn: Callable[[str], None]) -> Progress | None:
        """Put everything back to the newest checkpoint that is whole; None if there is no checkpoint at all.

        Damaged ones are renamed to `damaged-step-...`.

        Args:
            trained: what is put back.
            warn: is told of damaged ones.

        Raises:
            StorageError: all are damaged.
            OutputError: the checkpoint belongs to other settings.
        """
        damaged = list[str]()
        for step in reversed(self.steps()):
            try:
                progress = self.load(step, trained)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                continue
            for bad in [later for later in self.steps() if later > step]:
                self._set_aside(bad)
            for text in damaged:
                warn(f"{text}; going on from step {step}, the one before")
            return progress
        if damaged:
            raise StorageError(
                "\n".join(damaged) + "\nNo checkpoint of this run can be used.\n"
                "Type:  --out ANOTHER_FOLDER without --resume, to train again."
            )
        return None

    def load(self, step: int, trained: Trained) -> Progress:
        """Put model, optimiser, schedule and random state back to that step.

        Raises:
            DamagedCheckpointError: the checkpoint is damaged.
            OutputError: it belongs to other settings.
        """
        self._verify(step)
        folder = self.path(step)
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            progress = checked_progress(state["progress"], step)
            tensors = load_file(folder / OPTIMIZER)
            _restore_weights(load_file(folder / WEIGHTS), trained.model)
            if state.get("averaged"):
                trained.average.go_on_from(int(state["averaged"]))
                own = {name.removeprefix(_OWN): tensors[name] for name in tensors if name.startswith(_OWN)}
                _restore_weights(own, trained.model)
            restore_random_state(tensors)
            _restore_moments(trained.optimizer, {**tensors, **state["optimizer"]})
            _restore_schedule(trained.scheduler, trained.optimizer, state["scheduler"])
            if trained.scaler is not None and "scaler" in state:
                trained.scaler.load_state_dict(state["scaler"])
        except (OSError, SafetensorError) as error:  # the bytes are right, so it is the disk
            raise DamagedCheckpointError(f"{folder}: this checkpoint can't be read ({error})") from error
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise OutputError(
                f"{folder}: this checkpoint is of another run or version: {brief(str(error), 300)}\n"
                "Type:  --resume with the settings it was made with, or start again with another --out."
            ) from error
        return progress

    def load_weights(self, step: int, model: nn.Module) -> None:
        """Put the trainable weights of that step into the model.

        Raises:
            DamagedCheckpointError: the checkpoint is damaged.
            ValueError: the checkpoint's weights are not this model's.
        """
        self._verify(step)
        _restore_weights(load_file(self.path(step) / WEIGHTS), model)

    def best_whole(self, progress: Progress, metric: str) -> tuple[int, str | None]:
        """The best evaluated step whose checkpoint is whole, and what is wrong with the best step's, if anything.

        Raises:
            StorageError: no evaluation's checkpoint is whole.
        """
        if (of_best := self.damage(progress.best_step)) is None:
            return progress.best_step, None
        value = {int(entry["step"]): entry[metric] for entry in progress.evaluations if metric in entry}
        for step in sorted(value, key=value.__getitem__, reverse=True):
            if self.damage(step) is None:
                return step, of_best
        raise StorageError(f"{of_best}, and no other evaluated checkpoint is whole.\nType:  --out ANOTHER_FOLDER")

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint: a file is missing, can't be read or is not what was written."""
        folder = self.path(step)
        try:
            lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
            written = {name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}
            bad = [n for n in (WEIGHTS, OPTIMIZER, STATE) if written.get(n) != _checksum(folder / n)]
        except OSError as error:
            return f"{folder}: this checkpoint can't be read ({Path(error.filename or folder).name}: {error.strerror})"
        except UnicodeDecodeError:
            bad = [CHECKSUMS]
        return f"{folder}: this checkpoint is damaged ({bad[0]} is not what was written)" if bad else None

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint: it is not to count as one of the last few."""
        aside = self.folder / f"damaged-{self.path(step).name}"
        if aside.exists():
            remove_folder(aside)
        os.rename(self.path(step), aside)

    def _verify(self, step: int) -> None:
        if (damage := self.damage(step)) is not None:
            raise DamagedCheckpointError(damage)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _restore_weights(saved: Mapping[str, Tensor], model: nn.Module) -> None:
    if not weights_fit(saved, model):
        raise ValueError("its weights have other names or shapes than what this run trains")
    set_weights(model, saved)


def _moments(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimiser's state by parameter: its tensors, and its plain numbers (bitsandbytes counts its steps in one)."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    entries: dict[str, Any] = {}
    for index, entry in state.items():
        for key, value in entry.items():
            # bitsandbytes hands its own tensors out in a dict of their own, and takes them back without it.
            parts = value if isinstance(value, dict) else {key: value}
            entries.update({f"moment.{index}.{part}": item for part, item in parts.items()})
    # Some tensors are one for all parameters (the 8-bit code), which safetensors refuses to write twice.
    tensors = {name: value.clone() for name, value in entries.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in entries.items() if name not in tensors}


def _restore_moments(optimizer: torch.optim.Optimizer, entries: dict[str, Any]) -> None:
    current = optimizer.state_dict()
    current["state"] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in entries.items():
        if name.startswith("moment."):
            _, index, key = name.split(".", 2)
            if key in ("exp_avg", "exp_avg_sq") and value.shape != parameters[int(index)].shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, the parameter another")
            current["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(current)


def _restore_schedule(scheduler: LRScheduler, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A scheduler's state alone would leave the optimiser at the learning rate of step 0 for one step."""
    known = {key: state[key] for key in _SCHEDULER_KEYS}
    numbers = [known["last_epoch"], known["_step_count"], *known["_last_lr"], *known["base_lrs"]]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"its learning rates or steps are no numbers: {brief(known)}")
    scheduler.load_state_dict({**scheduler.state_dict(), **known})
    for group, lr in zip(optimizer.param_groups, state["_last_lr"], strict=True):
        group["lr"] = lr
