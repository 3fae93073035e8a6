"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from embedtune.config import TrainingConfig
from embedtune.training.plan import Plan

_TRANSFORMERS_NAMES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) in one fused kernel; biases and norms are not decayed."""
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig, plan: Plan) -> LRScheduler:
    """Linear warm-up to the peak, then a cosine or a line down to zero, or the peak kept."""
    scheduler: LRScheduler = get_scheduler(
        _TRANSFORMERS_NAMES[config.schedule],
        optimizer,
        num_warmup_steps=plan.warmup_steps,
        num_training_steps=plan.steps,
    )
    return scheduler
