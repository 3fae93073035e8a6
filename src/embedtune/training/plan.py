"""What a training run will do, derived from its settings and the size of its data before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from embedtune.config import TrainingConfig
from embedtune.data.batches import batches_per_epoch
from embedtune.errors import ConfigError

DEFAULT_BATCH_SIZE = 128
MIN_STEPS_PER_EPOCH = 16
"""With few pairs the default batch is made smaller, so that an epoch still has this many steps."""
SMALLEST_DEFAULT_BATCH = 16
EVALUATIONS_PER_RUN = 5
DEFAULT_LR = {"lora": 2e-3, "qlora": 2e-3, "full": 1e-4}
"""Peak learning rate by method: adapters on small encoders want ten to twenty times what the weights themselves do."""
PISSA_LR = 5e-4
"""An adapter that starts from the weights' main directions, not from zero, changes them far more with the same step."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers that the step loop runs by."""

    batch_size: int
    """Pairs in a contrastive batch at the most."""
    batches_per_epoch: int
    steps: int
    """Optimiser steps in all."""
    warmup_steps: int
    eval_steps: int
    """Optimiser steps between evaluations; there is always one after the last step."""
    lr: float
    """Peak learning rate."""


def make_plan(config: TrainingConfig, pairs: int, *, method: str = "lora", init: str = "default") -> Plan:
    """Derive what `config` leaves open for a training set of `pairs` rows, a method and a way to start the adapter.

    Raises:
        ConfigError: a batch was asked for that the rows don't fill.
    """
    if config.batch_size is not None and config.batch_size > pairs:
        raise ConfigError(
            f"--batch-size {config.batch_size} is more than the {pairs:,} pairs there are to train on.\n"
            f"Type:  --batch-size {pairs} or less, or leave it out."
        )
    batch_size = config.batch_size or min(_default_batch_size(pairs), pairs)
    per_epoch = batches_per_epoch(pairs, batch_size)
    steps = config.max_steps or max(1, round(config.epochs * per_epoch / config.accumulate))
    return Plan(
        batch_size=batch_size,
        batches_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=min(math.ceil(config.warmup_fraction * steps), steps - 1),
        eval_steps=config.eval_steps or math.ceil(steps / EVALUATIONS_PER_RUN),
        lr=config.lr or default_lr(method, init),
    )


def default_lr(method: str, init: str) -> float:
    """Peak learning rate of a method, and of an adapter by how it starts, as `AdapterConfig` names them."""
    return PISSA_LR if init == "pissa" else DEFAULT_LR[method]


def _default_batch_size(pairs: int) -> int:
    enough_steps = 1 << max(1, pairs // MIN_STEPS_PER_EPOCH).bit_length() - 1
    return max(SMALLEST_DEFAULT_BATCH, min(DEFAULT_BATCH_SIZE, enough_steps))
