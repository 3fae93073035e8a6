"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from embedtune.config import TrainingConfig
from embedtune.errors import ConfigError
from embedtune.training.plan import Phase, Plan


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig, plan: Plan) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), in one fused kernel or with 8-bit moments; biases and norms are not decayed.

    Raises:
        ConfigError: 8-bit moments were asked for, and bitsandbytes has none for this device.
    """
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "adamw8bit":
        check_8bit(trainable[0].device)
        from bitsandbytes.optim import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(groups, lr=plan.lr)
        return eight_bit
    return torch.optim.AdamW(groups, lr=plan.lr, fused=True)


def allocate_moments(optimizer: torch.optim.Optimizer) -> None:
    """Make the moments of all parameters that have none, as the first step would, so that a step needs no memory.

    A step makes and uses them group by group: if memory ran out in it, some weights would have changed and others not.
    """
    own: Any = getattr(optimizer, "optimizer", optimizer)  # without Accelerate's wrapper
    for number, group in enumerate(own.param_groups):
        for place, parameter in enumerate(group["params"]):
            if own.state[parameter]:
                continue
            if isinstance(own, torch.optim.AdamW):
                own.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
            else:
                own.init_state(group, parameter, number, place)  # bitsandbytes'


def check_8bit(device: torch.device) -> None:
    """Take one step of the 8-bit optimiser on that device.

    Raises:
        ConfigError: bitsandbytes is not installed or can't do it.
    """
    try:
        from bitsandbytes.optim import AdamW8bit

        parameter = nn.Parameter(torch.ones(64, 64, device=device))  # it keeps fewer than 4,096 values in 32 bits
        parameter.grad = torch.ones_like(parameter)
        AdamW8bit([parameter]).step()
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"--optimizer adamw8bit can't be used on {device.type}: {str(error).splitlines()[0]}.\n"
            "Type:  pip install 'embedtune[quant]', or --optimizer adamw."
        ) from error


def build_scheduler(optimizer: torch.optim.Optimizer, plan: Plan) -> LRScheduler:
    """In each phase a linear warm-up to its peak, then a cosine or a line down to zero, or the peak kept.

    Restarts as in SGDR (Loshchilov & Hutter 2017), with peaks that the plan sets.
    """

    def share_of_peak(step: int) -> float:
        phase = plan.phases[plan.phase_at(step)]
        return phase.lr / plan.lr * _SCHEDULES[plan.schedule](step - phase.first_step, phase)

    return LambdaLR(optimizer, share_of_peak)


def _rising(step: int, phase: Phase) -> float:
    return step / max(1, phase.warmup_steps)


def _cosine(step: int, phase: Phase) -> float:
    if step < phase.warmup_steps:
        return _rising(step, phase)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * _done(step, phase))))


def _linear(step: int, phase: Phase) -> float:
    return _rising(step, phase) if step < phase.warmup_steps else max(0.0, 1.0 - _done(step, phase))


def _constant(step: int, phase: Phase) -> float:
    return _rising(step, phase) if step < phase.warmup_steps else 1.0


def _done(step: int, phase: Phase) -> float:
    """Share of the steps after the warm-up."""
    return (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)


_SCHEDULES = {"cosine": _cosine, "linear": _linear, "constant": _constant}
