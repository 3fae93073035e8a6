"""What a training run will do, derived from its settings, its data and its model before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from embedtune.config import TrainingConfig
from embedtune.data.batches import batches_per_epoch
from embedtune.errors import ConfigError

DEFAULT_BATCH_SIZE = 128
MIN_STEPS_PER_EPOCH = 16
"""With few pairs the default batch is made smaller, so that an epoch still has this many steps."""
SMALLEST_DEFAULT_BATCH = 16
MIN_EVALUATIONS, MAX_EVALUATIONS = 3, 10
"""Of a run. By the default recipe three are one an epoch."""
TRAINED_PER_EVALUATED = 5
"""Texts that training embeds by those of an evaluation, which then takes less than a tenth of the time."""
USUAL_EVALUATIONS = 5
"""Where it is not known what one takes."""
DEFAULT_LR = {"lora": 2e-3, "qlora": 2e-3, "full": 1e-4}
"""Peak learning rate by method: adapters on small encoders want ten to twenty times what the weights themselves do."""
PISSA_LR = 5e-4
"""An adapter that starts from the weights' main directions, not from zero, changes them far more with the same step."""
WIDTH_OF_DEFAULTS = 384
"""Width of the encoder that the learning rates were found with; a wider one gets less, in proportion."""
MINED_SHARE = 0.5
"""Of the learning rate, where negatives are mined: the weights are nearly there. Of the batch size, where they are
added to each pair, which takes more then."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Passes over the pairs."""

    epochs: float
    """With the negatives of the batch, and those given."""
    mined: float
    """With mined negatives."""
    trainings: int = 1
    """How often all of it is done, from the same weights and in other orders; the mean of what they reach is taken."""
    averaging: Literal["none", "swa"] = "none"
    """Whether the mean of the weights of the steps with mined negatives is taken."""


RECIPES = {
    "quick": Recipe(epochs=1, mined=0),
    "default": Recipe(epochs=1, mined=2),
    "thorough": Recipe(epochs=1, mined=2, trainings=3, averaging="swa"),
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps with the same negatives, in which the learning rate rises and falls once."""

    first_step: int
    """Optimiser steps before it."""
    steps: int
    batch_size: int
    """Pairs in a contrastive batch at the most."""
    warmup_steps: int
    lr: float
    """Peak learning rate."""
    mines: bool
    """Whether hard negatives are mined before its first step."""
    neighbours: bool = False
    """Whether pairs that are linked by these come together, or each gets some added."""
    averaged: bool = False
    """Whether the mean of its steps' weights is what counts."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers that the step loop runs by, for each training of a run."""

    phases: tuple[Phase, ...]
    eval_steps: int
    """Optimiser steps between evaluations; there is always one before negatives are mined and after the last step."""
    epochs: float
    """Passes over the pairs before negatives are mined, if they are what counts and not the steps."""
    mined_epochs: float
    """Passes with mined negatives."""
    trainings: int = 1
    """By this plan, from the same weights and in other orders of the pairs."""
    averaging: Literal["none", "swa"] = "none"
    """Whether the mean of the steps' weights is what counts in phases with mined negatives."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls in each phase after its warm-up."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(phase.steps for phase in self.phases)

    @property
    def batch_size(self) -> int:
        """Pairs in a batch of the first phase."""
        return self.phases[0].batch_size

    @property
    def lr(self) -> float:
        """Peak learning rate of the first phase."""
        return self.phases[0].lr

    @property
    def warmup_steps(self) -> int:
        """Of the first phase."""
        return self.phases[0].warmup_steps

    def evaluates_at(self, step: int) -> bool:
        """Whether the model of that step is evaluated on the dev set."""
        mines = any(phase.mines and phase.first_step == step for phase in self.phases)
        return mines or step % self.eval_steps == 0 or step == self.steps

    def phase_at(self, step: int) -> int:
        """Number of the phase that the step after `step` steps belongs to; of the last one when all are done."""
        begun = [number for number, phase in enumerate(self.phases) if phase.first_step <= step]
        return begun[-1]


def make_plan(
    config: TrainingConfig,
    pairs: int,
    *,
    method: str = "lora",
    init: str = "default",
    width: int = WIDTH_OF_DEFAULTS,
    mining: bool = False,
    dev_texts: int | None = None,
) -> Plan:
    """Derive what `config` leaves open.

    Args:
        config: the settings.
        pairs: rows to train on.
        method: what is trained, as `AdapterConfig` names it.
        init: how the adapter starts, likewise.
        width: of the encoder's hidden states.
        mining: whether there can be phases with mined negatives.
        dev_texts: that an evaluation on the dev set embeds.

    Raises:
        ConfigError: a batch was asked for that the rows don't fill.
    """
    for option, size in (("batch-size", config.batch_size), ("mined-batch-size", config.mined_batch_size)):
        if size is not None and size > pairs:
            raise ConfigError(
                f"--{option} {size} is more than the {pairs:,} pairs there are to train on.\n"
                f"Type:  --{option} {pairs} or less, or leave it out."
            )
    batch_size = config.batch_size or min(_default_batch_size(pairs), pairs)
    neighbours = config.mined_in == "neighbours"
    mined_batch_size = config.mined_batch_size or (
        batch_size if neighbours else min(pairs, max(SMALLEST_DEFAULT_BATCH, round(MINED_SHARE * batch_size)))
    )
    lr = config.lr or default_lr(method, init, width)
    recipe = RECIPES[config.recipe]
    averaging = config.averaging if config.averaging != "auto" else recipe.averaging
    epochs, mined = config.epochs or recipe.epochs, _mined_epochs(config, recipe) if mining else 0.0
    lengths = [config.max_steps or _steps(epochs, batches_per_epoch(pairs, batch_size), config)]
    if mined:
        lengths.append(_steps(mined, batches_per_epoch(pairs, mined_batch_size), config))
    phases = tuple(
        Phase(
            first_step=last_step - steps,
            steps=steps,
            batch_size=mined_batch_size if number else batch_size,
            warmup_steps=min(math.ceil(config.warmup_fraction * steps), steps - 1),
            lr=(config.mined_lr or MINED_SHARE * lr) if number else lr,
            mines=number > 0,
            neighbours=number > 0 and neighbours,
            averaged=number > 0 and averaging == "swa",
        )
        for number, (steps, last_step) in enumerate(zip(lengths, accumulate(lengths), strict=True))
    )
    return Plan(
        phases=phases,
        eval_steps=config.eval_steps or math.ceil(sum(lengths) / _evaluations(phases, config, dev_texts)),
        epochs=epochs,
        mined_epochs=mined,
        trainings=config.trainings or recipe.trainings,
        averaging=averaging,
        schedule=_schedule(config, averaged=phases[-1].averaged),
    )


def _schedule(config: TrainingConfig, *, averaged: bool) -> Literal["cosine", "linear", "constant"]:
    if config.schedule != "auto":
        return config.schedule
    return "constant" if averaged else "cosine"


def _evaluations(phases: Sequence[Phase], config: TrainingConfig, dev_texts: int | None) -> int:
    if dev_texts is None:
        return USUAL_EVALUATIONS
    trained = 2 * config.accumulate * sum(phase.steps * phase.batch_size for phase in phases)
    return min(max(MIN_EVALUATIONS, trained // (TRAINED_PER_EVALUATED * dev_texts)), MAX_EVALUATIONS)


def default_lr(method: str, init: str, width: int = WIDTH_OF_DEFAULTS) -> float:
    """Peak learning rate of a method, and of an adapter by how it starts, as `AdapterConfig` names them.

    In proportion to the inverse of the width, as the weights' own best rate is (Yang et al. 2022, "Tensor Programs V",
    table 8): 1e-3 for an adapter on an encoder of width 768, 2e-4 at 4,096.
    """
    found_at_width = PISSA_LR if init == "pissa" else DEFAULT_LR[method]
    return found_at_width * min(1.0, WIDTH_OF_DEFAULTS / width)


def _mined_epochs(config: TrainingConfig, recipe: Recipe) -> float:
    """Passes with mined negatives."""
    if config.mined_epochs is None:
        return recipe.mined if config.max_steps is None else 0.0
    return config.mined_epochs


def _steps(epochs: float, per_epoch: int, config: TrainingConfig) -> int:
    return max(1, round(epochs * per_epoch / config.accumulate))


def _default_batch_size(pairs: int) -> int:
    enough_steps = 1 << max(1, pairs // MIN_STEPS_PER_EPOCH).bit_length() - 1
    return max(SMALLEST_DEFAULT_BATCH, min(DEFAULT_BATCH_SIZE, enough_steps))
