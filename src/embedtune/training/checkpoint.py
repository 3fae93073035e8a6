"""Checkpoints: everything a run needs to go on as if it had never stopped, without pickle.

A checkpoint is a folder `step-00000042` of three files: the trainable weights and the optimiser's moments in
safetensors, the rest in JSON. It is written beside its place and renamed, so a folder of that name is always whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from embedtune.atomic import replacing
from embedtune.errors import OutputError
from embedtune.training.random_state import random_state, restore_random_state

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_SCHEDULER_KEYS = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


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
    best_metric: float = float("-inf")
    evaluations_without_gain: int = 0
    micro_batch_tokens: int | None = None
    """Tokens that went through the encoder at a time; fewer than at the start if memory ran out."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Dev metrics with their `step`."""


class Checkpoints:
    """The `checkpoints/` folder of a run: the last few and the best one."""

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints on disk, ascending."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted(int(p.name[5:]) for p in found if p.name[5:].isdigit() and (p / STATE).is_file())

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, progress: Progress
    ) -> None:
        """Write a checkpoint of this moment; drop the ones that are neither among the last nor the best."""
        schedule = {key: scheduler.state_dict()[key] for key in _SCHEDULER_KEYS}
        moments, counts = _moments(optimizer)
        state = {"progress": asdict(progress), "scheduler": schedule, "optimizer": counts}
        with replacing(self.path(progress.step)) as unfinished:
            unfinished.mkdir(parents=True)
            save_file(trainable_tensors(model), unfinished / WEIGHTS)
            save_file({**moments, **random_state()}, unfinished / OPTIMIZER)
            (unfinished / STATE).write_text(json.dumps(state), encoding="utf-8")
        for step in self.steps()[: -self.keep_last]:
            if step != progress.best_step:
                shutil.rmtree(self.path(step))

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> Progress:
        """Put model, optimiser, schedule and random state back to that step.

        Raises:
            OutputError: the checkpoint is damaged, or belongs to other settings.
        """
        folder = self.path(step)
        try:
            self.load_weights(step, model)
            tensors = load_file(folder / OPTIMIZER)
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            restore_random_state(tensors)
            _restore_moments(optimizer, {**tensors, **state["optimizer"]})
            _restore_schedule(scheduler, optimizer, state["scheduler"])
            progress = Progress(**state["progress"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise OutputError(
                f"{folder}: this checkpoint can't be used: {error}\n"
                "Delete that folder to resume from the one before, or start again with another --out."
            ) from error
        return progress

    def load_weights(self, step: int, model: nn.Module) -> None:
        """Put the trainable weights of that step into the model.

        Raises:
            ValueError: the checkpoint's weights are not this model's.
        """
        saved, own = load_file(self.path(step) / WEIGHTS), trainable_tensors(model)
        if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in own.items()}:
            raise ValueError("its weights have other names or shapes than this model's adapter")
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, detached, sharing memory with the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


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
    for name, value in entries.items():
        if name.startswith("moment."):
            _, index, key = name.split(".", 2)
            current["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(current)


def _restore_schedule(scheduler: LRScheduler, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A scheduler's state alone would leave the optimiser at the learning rate of step 0 for one step."""
    scheduler.load_state_dict({**scheduler.state_dict(), **state})
    for group, lr in zip(optimizer.param_groups, state["_last_lr"], strict=True):
        group["lr"] = lr
